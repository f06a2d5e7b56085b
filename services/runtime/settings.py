"""Settings, read from the environment (prefix LOGPIPE_); one class per process, built from these bases.

docs/operations.md lists them all.
"""

import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=1, le=65535)]

_HOST_NAME = re.compile(r"[\w.-]+|\[[0-9a-f:.]+\]", re.IGNORECASE)
_ORIGIN = re.compile(rf"https?://(?:{_HOST_NAME.pattern})(?::[0-9]+)?", re.IGNORECASE)


def in_home(path: str) -> Path:
    """The folder `path`, which begins with "~/". A user without a home, as in a pod, has it in the temporary folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir(), *Path(path).parts[1:])


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="LOGPIPE_", extra="ignore", frozen=True)

    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    extra_datasets: str = Field(
        "",
        description="datasets on request that are part of this pipeline, comma-separated: `bench_logs`, for benchmarks",
    )


class PostgresSettings(Settings):
    postgres_url: SecretStr = Field(
        SecretStr("postgresql://logpipe@127.0.0.1:15432/logpipe?passfile=.stack/passwords/postgres"),
        description="the ledger and the first store",
    )


class KafkaSettings(Settings):
    kafka_url: str = Field("127.0.0.1:19092", description="bootstrap servers, comma-separated host:port")
    kafka_partitions: int = Field(4, ge=1, description="partitions that get rows; a topic has at least as many")
    kafka_replication: int = Field(1, ge=1, description="replicas of a topic that is made new")
    kafka_retention_hours: int = Field(168, ge=1, description="how long topics of rows keep messages at least")


class KafkaSecuritySettings(Settings):
    """Read by every client of Kafka (`runtime.kafka_security`), and by no process itself."""

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; with a protocol of SASL"
    )
    kafka_username: str = Field("", description="with a protocol of SASL")
    kafka_password: SecretStr = Field(SecretStr(""), description="with a protocol of SASL")
    kafka_ca: str = Field(
        "", description="PEM file with the certificates that brokers are checked by; else the system's"
    )

    @property
    def has_tls(self) -> bool:
        return self.kafka_security_protocol.endswith("SSL")

    @property
    def has_password(self) -> bool:
        return self.kafka_security_protocol.startswith("SASL")


class FootprintSettings(Settings):
    """Read by every process that serves HTTP (`runtime.footprints`)."""

    footprints: bool = Field(False, description="record a footprint of each request in Kafka: footprints/README.md")


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
    allowed_hosts: str = Field(
        "", description="host names, comma-separated, that requests may name besides loopback's and the bound address"
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _names_hosts(cls, text: str) -> str:
        return _checked(text, _HOST_NAME, "a host name or address without a port")

    @property
    def hosts(self) -> frozenset[str]:
        return _listed(self.allowed_hosts.lower())

    @property
    def origins(self) -> frozenset[str]:
        """The origins of other sites whose web pages may call this process."""
        return frozenset()


class CrossOriginSettings(ListenSettings):
    """A process that web pages of other sites may call.

    Only the ingest API is one. Such a page may send any request, so the others ignore the setting, which stands in the
    environment of all processes.
    """

    allowed_origins: str = Field(
        "",
        description="origins, comma-separated, whose web pages may call the ingest API: https://shop.example.org",
    )

    @field_validator("allowed_origins")
    @classmethod
    def _names_origins(cls, text: str) -> str:
        return _checked(text, _ORIGIN, "an origin: http(s)://host[:port], without a path")

    @property
    def origins(self) -> frozenset[str]:
        return _listed(self.allowed_origins.lower())


def _checked(text: str, form: re.Pattern[str], description: str) -> str:
    for name in _listed(text):
        if not form.fullmatch(name):
            raise ValueError(f"{name!r} is not {description}")
    return text


def _listed(text: str) -> frozenset[str]:
    return frozenset(filter(None, map(str.strip, text.split(","))))
