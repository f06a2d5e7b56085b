from pathlib import Path

from pydantic import Field

from services.runtime.settings import KafkaSettings, LakeSettings, ListenSettings, Port, PostgresSettings


class SparkSettings(LakeSettings):
    spark_master: str = Field("local[2]", description="where Spark runs: local[cores] or a cluster's master URL")
    spark_memory: str = Field("1g", description="heap of the Spark driver")
    spark_jars: str = Field(
        "", description="files or folders with the jars of Kafka and Delta, comma-separated; resolved when empty"
    )
    spark_ivy: Path = Field(
        Path("~/.cache/logpipe/ivy").expanduser(), description="where Spark keeps the jars that it resolves itself"
    )
    spark_ui: bool = Field(False, description="serve Spark's own page on 127.0.0.1:4040")


class StreamSettings(SparkSettings, KafkaSettings, ListenSettings):
    """Of any process of streaming queries."""


class StreamToLakeSettings(StreamSettings):
    stream_to_lake_port: Port = Field(8084, description="port of health and metrics")
    lake_trigger_seconds: float = Field(10.0, ge=0, description="a commit every so often")
    lake_rows_per_trigger: int = Field(600_000, ge=1, description="rows of one commit, about, when catching up")
    lake_warm_up_seconds: float = Field(
        90.0, ge=0, description="how long a start may warm Spark up, at most, before it is ready; 0: not at all"
    )


class ReportSettings(SparkSettings, PostgresSettings):
    pass


class RealtimeSettings(StreamSettings, PostgresSettings):
    realtime_port: Port = Field(8087, description="port of health and metrics")
    realtime_trigger_seconds: float = Field(2.0, ge=0, description="the windows are brought up to date every so often")
