from pydantic import Field

from services.runtime.settings import KafkaSettings, ListenSettings, Port, PostgresSettings


class StreamToStoreSettings(PostgresSettings, KafkaSettings, ListenSettings):
    stream_to_store_port: Port = Field(8083, description="port of health and metrics")
    block_rows: int = Field(100_000, ge=1, description="rows of a dataset written without waiting for more")
    block_bytes: int = Field(32 << 20, ge=1, description="the same in bytes; bounds what is held")
    block_seconds: float | None = Field(
        None, gt=0, description="seconds after which fewer rows are written too; by default 1, or what suits the store"
    )
