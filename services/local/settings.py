"""Settings of the local stack: its ports, its folders, and which components run outside the stack."""

import re
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr

from services.local import passwords
from services.runtime.settings import Port, Settings, in_home

LakeWriter = Literal["spark", "embedded"]


class LocalSettings(Settings):
    stack: Path = Field(Path(".stack"), description="folder with all data, logs and state of the local stack")
    cache: Path = Field(in_home("~/.cache/logpipe/jars"), description="where jars are kept, shared by all stacks")

    postgres_url: SecretStr | None = Field(None, description="use this PostgreSQL, do not start one")
    kafka_url: str | None = Field(None, description="use this Kafka, do not start one")
    hdfs_url: str | None = Field(None, description="use this HDFS, do not start one")
    clickhouse_url: SecretStr | None = Field(None, description="use this ClickHouse, do not start the embedded one")
    redis_url: SecretStr | None = Field(None, description="use this Redis, do not start one")
    spark_connect_url: str | None = Field(None, description="use this Spark Connect server, do not start one")

    lake_writer: LakeWriter = Field(
        "spark",
        description="what fills the lake of the local stack: spark, or embedded, which is cheaper and needs no JVM",
    )

    kafka_source_topic: str = Field("", description="the foreign topic of kafka-source, unless --topic names it")
    kafka_source_dataset: str = Field("footprints", description="the dataset of its rows, unless --dataset names it")

    monitoring: bool = Field(
        False, description="the local stack has Prometheus and its exporters, as with up --with monitoring"
    )

    local_postgres_port: Port = Field(15432, description="PostgreSQL of the local stack")
    local_kafka_port: Port = Field(19092, description="Kafka of the local stack")
    local_kafka_controller_port: Port = Field(19093, description="Kafka's controller")
    local_namenode_port: Port = Field(18020, description="HDFS NameNode, RPC")
    local_namenode_http_port: Port = Field(18070, description="HDFS NameNode, web page")
    local_datanode_port: Port = Field(18066, description="HDFS DataNode, data")
    local_datanode_ipc_port: Port = Field(18067, description="HDFS DataNode, RPC")
    local_datanode_http_port: Port = Field(18064, description="HDFS DataNode, web page")
    local_clickhouse_port: Port = Field(18123, description="embedded ClickHouse engine, HTTP")
    local_redis_port: Port = Field(16379, description="Redis of the local stack")
    local_spark_connect_port: Port = Field(15002, description="Spark Connect server of the local stack")
    local_prometheus_port: Port = Field(19090, description="Prometheus of the local stack")
    local_node_exporter_port: Port = Field(19100, description="exporter of the machine's metrics")
    local_postgres_exporter_port: Port = Field(19187, description="exporter of PostgreSQL's metrics")
    local_redis_exporter_port: Port = Field(19121, description="exporter of Redis' metrics")
    local_kafka_metrics_port: Port = Field(19404, description="metrics of Kafka's JVM")
    local_namenode_metrics_port: Port = Field(18404, description="metrics of the NameNode's JVM")
    local_datanode_metrics_port: Port = Field(18405, description="metrics of the DataNode's JVM")
    local_lake_metrics_port: Port = Field(18406, description="metrics of the JVM of stream-to-lake")
    local_realtime_metrics_port: Port = Field(18407, description="metrics of the JVM of realtime-aggregator")
    local_ingest_metrics_port: Port = Field(18081, description="metrics of the first ingest process")
    local_ingest_2_metrics_port: Port = Field(18082, description="metrics of the second ingest process")

    ingest_port: Port = Field(8081, description="ingest API")
    kafka_source_port: Port = Field(8089, description="operations port of kafka-source")
    generator_port: Port = Field(30800, description="generator")
    query_port: Port = Field(30801, description="query API")
    stream_to_store_port: Port = Field(8083, description="operations port of stream-to-store")
    alerting_port: Port = Field(8088, description="operations port of alerting")
    stream_to_lake_port: Port = Field(8084, description="operations port of stream-to-lake")
    maintain_port: Port = Field(8085, description="operations port of maintain")
    realtime_port: Port = Field(8087, description="operations port of realtime-aggregator")

    @classmethod
    def on_free_ports(cls, stack: Path) -> Self:
        """Return settings of a stack beside others: it has no default port, and no component outside the stack."""
        names = [name for name in cls.model_fields if name.endswith("_port")]
        with ExitStack() as held:  # all held at once, so that none is given twice
            sockets = [held.enter_context(socket.socket()) for _ in names]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            ports = {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
        urls = dict.fromkeys(name for name in cls.model_fields if name.endswith("_url"))
        return cls(stack=stack, **urls, **ports)

    @property
    def folder(self) -> Path:
        return self.stack.resolve()

    def urls(self) -> dict[str, str]:
        """Return the environment variables with the URLs of all components."""
        own = self._own_urls()
        return {f"LOGPIPE_{name.upper()}": self._replacement(name, own) or own[name] for name in own}

    def environment(self) -> dict[str, str]:
        """Return the environment variables by which other commands find this stack."""
        ingest = f"http://127.0.0.1:{self.ingest_port}"
        return {**self.urls(), "LOGPIPE_STACK": str(self.folder), "LOGPIPE_INGEST_URL": ingest}

    def is_replaced(self, url: str) -> bool:
        """Return whether the setting named `url` says that the component runs outside the stack."""
        return self._replacement(url, self._own_urls()) is not None

    def _replacement(self, name: str, own: Mapping[str, str]) -> str | None:
        """Return the URL of a component outside the stack; None if only the password differs from the stack's URL."""
        value = getattr(self, name)
        url = value.get_secret_value() if isinstance(value, SecretStr) else value
        return None if url is None or _without_password(url) == _without_password(own[name]) else url

    def _own_urls(self) -> dict[str, str]:
        return {
            "postgres_url": f"postgresql://{passwords.POSTGRES_ROLE}@127.0.0.1:{self.local_postgres_port}/logpipe"
            f"?{passwords.postgres_parameter(self.folder)}",
            "kafka_url": f"127.0.0.1:{self.local_kafka_port}",
            "hdfs_url": f"hdfs://127.0.0.1:{self.local_namenode_port}",
            "clickhouse_url": f"http://127.0.0.1:{self.local_clickhouse_port}",
            "redis_url": f"redis://:{passwords.redis(self.folder)}@127.0.0.1:{self.local_redis_port}/0",
            "spark_connect_url": f"sc://127.0.0.1:{self.local_spark_connect_port}",
        }


def _without_password(url: str) -> str:
    address = url.partition("?")[0]
    return re.sub(r"(?<=//)([^/@:]*)(?::[^/@]*)?@", lambda user: f"{user[1]}@" if user[1] else "", address)
