from pydantic import Field

from services.acceptance.settings import AcceptanceSettings
from services.runtime.settings import Port


class KafkaSourceSettings(AcceptanceSettings):
    kafka_source_port: Port = Field(8089, description="port of health and metrics")
    kafka_source_url: str = Field(
        "", description="bootstrap servers of the foreign topic, if it is in another cluster than the pipeline's topics"
    )
    kafka_source_topic: str = Field("", description="the foreign topic of kafka-source, unless --topic names it")
    kafka_source_dataset: str = Field("footprints", description="the dataset of its rows, unless --dataset names it")
    kafka_source_rows: int = Field(10_000, ge=1, description="lines that are taken without waiting for more")
    kafka_source_bytes: int = Field(
        16 << 20, ge=1, description="the same in bytes; bounds what is held, with what one poll returns"
    )
    kafka_source_seconds: float = Field(0.2, gt=0, description="seconds after which fewer lines are taken, too")
