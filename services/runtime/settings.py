"""Settings, read from the environment (prefix LOGPIPE_); one class per process, built from these bases.

docs/operations.md lists them all.
"""

from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="LOGPIPE_", extra="ignore", frozen=True)

    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")


class PostgresSettings(Settings):
    postgres_url: SecretStr = Field(
        SecretStr("postgresql://logpipe@127.0.0.1:15432/logpipe?passfile=.stack/passwords/postgres"),
        description="the ledger and the first store",
    )


class KafkaSettings(Settings):
    kafka_url: str = Field("127.0.0.1:19092", description="bootstrap servers, comma-separated host:port")
    kafka_partitions: int = Field(4, ge=1, description="partitions of a topic that is made new")
    kafka_replication: int = Field(1, ge=1, description="replicas of a topic that is made new")
    kafka_retention_hours: int = Field(168, ge=1, description="how long topics of rows keep messages at least")


class ClickHouseSettings(Settings):
    clickhouse_url: SecretStr = Field(
        SecretStr("http://127.0.0.1:18123"), description="http(s)://[user:password@]host:port[/database]"
    )


class LakeSettings(Settings):
    hdfs_url: str = Field("hdfs://127.0.0.1:18020", description="the NameNode")
    lake_path: str = Field("/lake", description="folder of the lake's tables and checkpoints on HDFS")


class ListenSettings(Settings):
    """A process that listens. Beyond loopback it refuses to start without a token."""

    host: str = Field("127.0.0.1", description="address to listen on")
    token: SecretStr | None = Field(None, description="bearer token; required when listening beyond loopback")
    public_reads: bool = Field(False, description="let reads through without the token")
