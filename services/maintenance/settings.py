from pydantic import Field

from services.runtime.settings import KafkaSettings, LakeSettings, ListenSettings, Port, PostgresSettings


class MaintainSettings(PostgresSettings, KafkaSettings, LakeSettings, ListenSettings):
    maintain_port: Port = Field(8085, description="port of health and metrics")
    maintain_seconds: float = Field(60.0, gt=0, description="pause of maintain between two runs")
    compact_files: int = Field(64, ge=2, description="small files of a day in the lake from which on they are merged")
    vacuum_hours: int = Field(
        6, ge=1, le=24, description="how long a query may still need files that were replaced in the lake"
    )
    retention_days: int | None = Field(
        None, ge=1, description="whole days after which accepted rows are dropped from every store; unset: never"
    )
