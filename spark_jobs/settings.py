"""The settings of the Spark jobs."""

from pathlib import Path

from pydantic import Field

from services.runtime.settings import KafkaSettings, LakeSettings, ListenSettings, Port, PostgresSettings, in_home


class SparkSettings(LakeSettings):
    spark_master: str = Field("local[2]", description="where Spark runs: local[cores] or a cluster's master URL")
    spark_memory: str = Field("1g", description="heap of the Spark driver")
    spark_java_options: str = Field("", description="further options of the Spark driver's JVM")
    spark_jars: str = Field(
        "", description="files or folders with the jars of Kafka and Delta, comma-separated; resolved when empty"
    )
    spark_ivy: Path = Field(
        in_home("~/.cache/logpipe/ivy"), description="where Spark keeps the jars that it resolves itself"
    )
    spark_ui: bool = Field(False, description="serve Spark's own page on 127.0.0.1:4040")


class StreamSettings(SparkSettings, KafkaSettings, ListenSettings):
    """The settings of every process that runs streaming queries."""


class StreamToLakeSettings(StreamSettings):
    stream_to_lake_port: Port = Field(8084, description="port of health and metrics")
    lake_trigger_seconds: float = Field(10.0, ge=0, description="seconds between two commits")
    lake_rows_per_trigger: int = Field(
        600_000, ge=1, description="about how many rows one commit has while the stream catches up"
    )
    lake_warm_up_seconds: float = Field(
        90.0, ge=0, description="the most seconds that a start warms Spark up before it is ready; 0: no warm-up"
    )


class ReportSettings(SparkSettings, PostgresSettings):
    pass


class RealtimeSettings(StreamSettings, PostgresSettings):
    realtime_port: Port = Field(8087, description="port of health and metrics")
    realtime_trigger_seconds: float = Field(2.0, ge=0, description="seconds between two updates of the windows")
