from pydantic import Field

from services.acceptance.settings import AcceptanceSettings
from services.runtime.settings import CrossOriginSettings, Port


class IngestSettings(AcceptanceSettings, CrossOriginSettings):
    ingest_port: Port = 8081
    ingest_own_port: Port | None = Field(
        None, description="second port of an ingest API that shares its port (--share-port), for its metrics"
    )
    ingest_connections: int = Field(1, ge=1, le=32, description="PostgreSQL connections that COPY side by side")
    ingest_group_wait: float = Field(
        0.005, ge=0, description="seconds that a request waits for others, to share one transaction"
    )
    ingest_max_body: int = Field(64 << 20, ge=1024, description="bytes of a body, decompressed")
    ingest_max_in_flight: int = Field(
        256 << 20, ge=1024, description="bytes of bodies and decoded rows being worked on; beyond it 503"
    )
    ingest_text_index: bool = Field(True, description="index closed days in PostgreSQL for text search")
    request_key_hours: float = Field(24, gt=0, description="how long an Idempotency-Key is remembered")
