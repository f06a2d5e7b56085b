"""The processes of the pipeline as programs of the stack: `python -m services <name>`."""

import sys
from dataclasses import replace

from services.core.errors import NeedsOperator
from services.local import jars, jmx
from services.local.program import Program, http_ready
from services.local.settings import LocalSettings
from services.stores import clickhouse, lake

_KEEP_FREED_BLOCKS = {
    # A body is a large block. glibc would return it to the kernel, and request it again page by page.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def ingest_api(settings: LocalSettings) -> Program:
    program = _process(
        settings,
        "ingest-api",
        "LOGPIPE_INGEST_PORT",
        settings.ingest_port,
        arguments=("--share-port",),
        environment=_KEEP_FREED_BLOCKS,
    )
    return _with_own_port(settings, program, "LOGPIPE_LOCAL_INGEST_METRICS_PORT", settings.local_ingest_metrics_port)


def ingest_api_2(settings: LocalSettings) -> Program:
    """A second process on the same port, because a process runs Python code on one core only."""
    program = replace(ingest_api(settings), name="ingest-api-2", ports={})
    port = settings.local_ingest_2_metrics_port
    return _with_own_port(settings, program, "LOGPIPE_LOCAL_INGEST_2_METRICS_PORT", port)


def _with_own_port(settings: LocalSettings, program: Program, setting: str, port: int) -> Program:
    """On the shared port, the kernel picks the process that answers. Prometheus has to ask each one."""
    if not settings.monitoring:
        return program
    environment = {**program.environment, "LOGPIPE_INGEST_OWN_PORT": str(port)}
    return replace(program, environment=environment, ports={**program.ports, setting: port})


def kafka_source(settings: LocalSettings) -> Program:
    if not settings.kafka_source_topic:
        raise NeedsOperator("kafka-source reads a foreign topic: name it by LOGPIPE_KAFKA_SOURCE_TOPIC")
    return _process(
        settings,
        "kafka-source",
        "LOGPIPE_KAFKA_SOURCE_PORT",
        settings.kafka_source_port,
        arguments=("--topic", settings.kafka_source_topic, "--dataset", settings.kafka_source_dataset),
    )


def stream_to_store(settings: LocalSettings) -> Program:
    return _process(
        settings,
        "stream-to-store",
        "LOGPIPE_STREAM_TO_STORE_PORT",
        settings.stream_to_store_port,
        arguments=("--store", clickhouse.STORE.name),
    )


def stream_to_lake(settings: LocalSettings) -> Program:
    if settings.lake_writer == "embedded":
        program = _process(
            settings,
            "stream-to-store",
            "LOGPIPE_STREAM_TO_STORE_PORT",
            settings.stream_to_lake_port,
            arguments=("--store", lake.STORE.name),
            name="stream-to-lake",
        )
    else:
        program = _process(
            settings,
            "stream-to-lake",
            "LOGPIPE_STREAM_TO_LAKE_PORT",
            settings.stream_to_lake_port,
            environment=_spark_environment(settings, "stream-to-lake", settings.local_lake_metrics_port),
        )
    return _yielding(program, 15)


def realtime_aggregator(settings: LocalSettings) -> Program:
    return _process(
        settings,
        "realtime-aggregator",
        "LOGPIPE_REALTIME_PORT",
        settings.realtime_port,
        environment=_spark_environment(settings, "realtime-aggregator", settings.local_realtime_metrics_port),
    )


def maintain(settings: LocalSettings) -> Program:
    return _yielding(_process(settings, "maintain", "LOGPIPE_MAINTAIN_PORT", settings.maintain_port), 10)


def generator(settings: LocalSettings) -> Program:
    return _process(
        settings,
        "generator",
        "LOGPIPE_GENERATOR_PORT",
        settings.generator_port,
        environment={"LOGPIPE_INGEST_URL": f"http://127.0.0.1:{settings.ingest_port}"},
    )


def alerting(settings: LocalSettings) -> Program:
    return _process(settings, "alerting", "LOGPIPE_ALERTING_PORT", settings.alerting_port)


def query_api(settings: LocalSettings) -> Program:
    return _process(
        settings,
        "query-api",
        "LOGPIPE_QUERY_PORT",
        settings.query_port,
    )


def _yielding(program: Program, nice: int) -> Program:
    """Return the program with a lower priority: its work uses all cores at times, and requests must not wait."""
    return replace(program, command=("nice", "-n", str(nice), *program.command))


def _spark_environment(settings: LocalSettings, name: str, metrics: int) -> dict[str, str]:
    return {
        "LOGPIPE_SPARK_JAVA_OPTIONS": " ".join(jmx.agent(settings, "spark", metrics)),
        "LOGPIPE_SPARK_JARS": ",".join(jars.spark_jars()),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(settings.folder / name / "scratch"),
    }


def _process(
    settings: LocalSettings,
    command: str,
    setting: str,
    port: int,
    *,
    arguments: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    name: str = "",
) -> Program:
    """`name` is given where the program and its command have different names."""
    address = f"http://127.0.0.1:{port}"
    name = name or command
    return Program(
        name=name,
        command=(sys.executable, "-m", "services", command, *arguments),
        folder=settings.folder / name,
        address=address,
        ports={setting: port},
        ready=http_ready(f"{address}/readyz"),
        environment=settings.urls() | {setting: str(port), "LOGPIPE_HOST": "127.0.0.1"} | (environment or {}),
    )
