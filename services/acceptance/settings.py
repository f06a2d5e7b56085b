from pydantic import Field

from services.runtime.settings import KafkaSettings, ListenSettings, PostgresSettings


class AcceptanceSettings(PostgresSettings, KafkaSettings, ListenSettings):
    """Settings of every process that accepts rows."""

    ingest_group_rows: int = Field(10_000, ge=1, le=131_072, description="rows of a group commit, and of a batch")
    ingest_disk_path: str = Field(".", description="a path on the disk to watch")
    disk_space_url: str = Field(
        "", description="`logpipe disk-space` beside PostgreSQL; its disk is then watched, not that of a path here"
    )
    ingest_disk_floor: int = Field(1 << 30, ge=0, description="free bytes below which no rows are accepted")
    publisher_cache: int = Field(64 << 20, ge=0, description="bytes of messages kept ready for Kafka")
    publisher_rows: int = Field(100_000, ge=1, description="rows of one Kafka transaction, roughly")
