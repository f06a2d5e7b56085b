"""A stack on this machine: one that runs already, or one that is started for the run and deleted after it."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from services.bench.target.settings import BenchSettings
from services.bench.target.urls import Target, producer_perf_of_path
from services.core.errors import Invalid
from services.local import jars, usage
from services.local.java import java
from services.local.settings import LocalSettings
from services.local.stack import Stack

_SPARK = "spark-connect"
_PROGRAMS = (
    *("postgres", "kafka", "namenode", "datanode", "clickhouse", "redis"),
    *("ingest-api", "ingest-api-2", "stream-to-store", "stream-to-lake", "query-api"),
)
"""Of a fresh stack: without maintain, which would compact the lake while it is measured as it was written."""


class LocalTarget(Target):
    """A running local stack. Its own Prometheus is used where it has one and the settings name no other."""

    def __init__(self, settings: BenchSettings, stack: Stack) -> None:
        own = _own_urls(stack)
        if not settings.prometheus_url and "prometheus" in stack.states():
            own["prometheus_url"] = f"http://127.0.0.1:{stack.settings.local_prometheus_port}"
        super().__init__(settings.model_copy(update=own), producer_perf)
        self._stack = stack

    def describe(self) -> dict[str, str]:
        programs = ", ".join(sorted(self.components()))
        return {**super().describe(), "stack": str(self._stack.folder), "programs": programs}

    def environment(self) -> Mapping[str, str]:
        return self._stack.settings.environment()

    def cpu(self) -> dict[str, float]:
        return usage.cpu_by_program(self._stack.states())

    def disk(self) -> dict[str, int]:
        return {name: usage.disk_bytes(self._stack.program(name).folder) for name in self._stack.states()}

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._stack.folder).free

    def components(self) -> frozenset[str]:
        return frozenset(name for name, state in self._stack.states().items() if state.pid)

    def kill(self, component: str) -> None:
        state = self._stack.states().get(component)
        if state is None or not state.pid:
            raise Invalid(f"{component} does not run")
        os.kill(state.pid, signal.SIGKILL)


def running(settings: BenchSettings) -> LocalTarget | None:
    """Return the local stack if it runs and the settings name no other one."""
    stack = Stack(LocalSettings())
    own = _own_urls(stack)
    if any(getattr(settings, name) != own[name] for name in own if name in settings.model_fields_set):
        return None
    return LocalTarget(settings, stack) if any(state.pid for state in stack.states().values()) else None


def _own_urls(stack: Stack) -> dict[str, str]:
    ports = stack.settings
    return {
        "ingest_url": f"http://127.0.0.1:{ports.ingest_port}",
        "query_url": f"http://127.0.0.1:{ports.query_port}",
    }


def producer_perf() -> Sequence[str]:
    """Return the command of kafka-producer-perf-test: by the jars of the local stack if they are on this machine.

    Raises NeedsOperator if neither they nor an installed Kafka can be found. The stack itself may be elsewhere.
    """
    if not jars.KAFKA.folder.is_dir():
        return producer_perf_of_path()
    return (java(), "-Xmx256m", "-cp", jars.kafka_classpath(), "org.apache.kafka.tools.ProducerPerformance")


@contextmanager
def fresh(settings: BenchSettings, *, spark: bool) -> Iterator[LocalTarget]:
    """Start a stack of its own on free ports, in a temporary folder that is deleted afterwards.

    `spark`: with the lake's second engine.
    """
    with tempfile.TemporaryDirectory(prefix="logpipe-bench-") as name:
        Path(name).chmod(0o755)  # in a closed folder, PostgreSQL's data would lie outside, and would be left behind
        own = LocalSettings.on_free_ports(Path(name)).model_copy(update={"lake_writer": "embedded"})
        with (
            Stack(own, (*_PROGRAMS, _SPARK) if spark else _PROGRAMS) as stack,
            closing(LocalTarget(settings, stack)) as target,
        ):
            yield target
