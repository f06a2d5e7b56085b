from pydantic import Field

from services.runtime.settings import CrossOriginSettings, KafkaSettings, Port, PostgresSettings


class IngestSettings(PostgresSettings, KafkaSettings, CrossOriginSettings):
    ingest_port: Port = 8081
    ingest_own_port: Port | None = Field(
        None, description="second port of an ingest API that shares its port (--share-port), for its metrics"
    )
    ingest_connections: int = Field(1, ge=1, le=32, description="PostgreSQL connections that COPY side by side")
    ingest_group_rows: int = Field(10_000, ge=1, le=131_072, description="rows of a group commit, and of a batch")
    ingest_group_wait: float = Field(0.005, ge=0, description="seconds a request waits for others to travel with")
    ingest_max_body: int = Field(64 << 20, ge=1024, description="bytes of a body, decompressed")
    ingest_max_in_flight: int = Field(
        256 << 20, ge=1024, description="bytes of bodies and decoded rows being worked on; beyond it 503"
    )
    ingest_disk_path: str = Field(".", description="a path on the disk to watch")
    disk_space_url: str = Field(
        "", description="`logpipe disk-space` beside PostgreSQL; its disk is then watched, not that of a path here"
    )
    ingest_disk_floor: int = Field(1 << 30, ge=0, description="free bytes below which ingest answers 503")
    ingest_text_index: bool = Field(True, description="index closed days in PostgreSQL for text search")
    publisher_cache: int = Field(64 << 20, ge=0, description="bytes of messages kept ready for Kafka")
    publisher_rows: int = Field(100_000, ge=1, description="rows of one Kafka transaction, roughly")
    request_key_hours: float = Field(24, gt=0, description="how long an Idempotency-Key is remembered")
