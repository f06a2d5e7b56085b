"""The whole local stack: which programs it has, bringing them up in order, taking them down in reverse."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

from services.core.errors import Invalid, NeedsOperator
from services.local import (
    clickhouse,
    hdfs,
    kafka,
    monitoring,
    passwords,
    postgres,
    processes,
    redis,
    spark_connect,
    targets,
    unprivileged,
)
from services.local.program import Program
from services.local.settings import LocalSettings
from services.local.supervision import State, Supervisor
from services.migrate.service import migrate

READY_SECONDS = 180
_POLL_SECONDS = 0.1
_FREE_BYTES = 2 << 30


class _GivenUp(NeedsOperator):
    """A program was not started because another one has failed."""


@dataclass(frozen=True, slots=True)
class _Entry:
    make: Callable[[LocalSettings], Program]
    needs: tuple[str, ...] = ()
    replaced_by: str | None = None  # the setting with the URL of a component outside the stack
    optional: bool = False  # started only when it is named


# A program is listed after the programs that it needs. It starts after them, and stops before them.
_PROGRAMS: Mapping[str, _Entry] = {
    "postgres": _Entry(postgres.postgres, replaced_by="postgres_url"),
    "kafka": _Entry(kafka.kafka, replaced_by="kafka_url"),
    "namenode": _Entry(hdfs.namenode, replaced_by="hdfs_url"),
    "datanode": _Entry(hdfs.datanode, needs=("namenode",), replaced_by="hdfs_url"),
    "clickhouse": _Entry(clickhouse.clickhouse, replaced_by="clickhouse_url"),
    "redis": _Entry(redis.redis_server, replaced_by="redis_url"),
    "spark-connect": _Entry(
        spark_connect.spark_connect, needs=("datanode",), replaced_by="spark_connect_url", optional=True
    ),
    "ingest-api": _Entry(processes.ingest_api, needs=("postgres", "kafka")),
    "ingest-api-2": _Entry(processes.ingest_api_2, needs=("ingest-api",)),
    "kafka-source": _Entry(processes.kafka_source, needs=("postgres", "kafka"), optional=True),
    "stream-to-store": _Entry(processes.stream_to_store, needs=("postgres", "kafka", "clickhouse")),
    "stream-to-lake": _Entry(processes.stream_to_lake, needs=("postgres", "kafka", "datanode")),
    "realtime-aggregator": _Entry(
        processes.realtime_aggregator, needs=("postgres", "kafka", "datanode"), optional=True
    ),
    "maintain": _Entry(processes.maintain, needs=("postgres", "clickhouse", "datanode")),
    "alerting": _Entry(processes.alerting, needs=("postgres", "kafka"), optional=True),
    "query-api": _Entry(processes.query_api, needs=("postgres", "clickhouse", "datanode")),
    "generator": _Entry(processes.generator, needs=("ingest-api",)),
    "prometheus": _Entry(monitoring.prometheus, optional=True),
    "node-exporter": _Entry(monitoring.node_exporter, optional=True),
    "postgres-exporter": _Entry(monitoring.postgres_exporter, optional=True),
    "redis-exporter": _Entry(monitoring.redis_exporter, optional=True),
}
NAMES = tuple(_PROGRAMS)
TABLES = "tables"
"""The step of `up` that applies the migrations, once PostgreSQL is ready."""

Watcher = Callable[[str, str], None]
"""Called with the name of a program, or TABLES, and its new state, such as starting or ready."""


class Stack:
    """One stack in one folder; all methods block. As a context it is up inside and down after.

    `only`: the names of its programs; when empty, all but the optional ones. A program that a URL replaces is left out.
    With the setting `monitoring`, the stack has the programs of monitoring that this machine can run as well.
    """

    def __init__(self, settings: LocalSettings, only: tuple[str, ...] = ()) -> None:
        if unknown := set(only) - set(NAMES):
            raise Invalid(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
        self.settings = settings
        self.folder = settings.folder
        self.supervisor = Supervisor(self.folder)
        self._only = only or tuple(name for name, entry in _PROGRAMS.items() if not entry.optional)
        if settings.monitoring:
            self._only += tuple(name for name in monitoring.NAMES if name not in monitoring.absent())

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def names(self) -> tuple[str, ...]:
        """The programs this stack runs itself."""
        return tuple(name for name in NAMES if name in self._only and not self._replaced(name))

    @property
    def steps(self) -> tuple[str, ...]:
        """What `up` tells its watcher about: the programs, and TABLES before the first program that needs them."""
        first = next((at for at, name in enumerate(self.names) if _needs_tables(name)), None)
        return self.names if first is None else (*self.names[:first], TABLES, *self.names[first:])

    def program(self, name: str) -> Program:
        return _PROGRAMS[name].make(self.settings)

    def up(self, watcher: Watcher = lambda name, event: None) -> None:
        """Start what does not run and return when all is ready; raises NeedsOperator, saying what to do.

        A program that runs with other settings than those of now is stopped first, if it is one of `names`.
        """
        self._check_disk()
        running = self.supervisor.states()
        known = {name: self.program(name) for name in NAMES if name in self.names or name in running}
        for program in known.values():
            program.folder.mkdir(parents=True, exist_ok=True)
        # Variables that the shell got from `logpipe env` are left out, because each program gets them anyway.
        own = self.settings.environment()
        inherited = {k: v for k, v in os.environ.items() if k.startswith("LOGPIPE_") and k not in own}
        for name in self.supervisor.configure(known.values(), self.names, inherited):
            watcher(name, "stopped: its settings have changed")
        if "prometheus" in known:
            targets.write(self.settings, known)
        given_up = threading.Event()
        ready: dict[str, Future[None]] = {}
        tables: Future[None] | None = None
        try:
            with ThreadPoolExecutor(len(NAMES) + 1) as pool:
                for name in self.names:  # needs come first in this order, so their futures exist
                    needs = [ready[need] for need in _PROGRAMS[name].needs if need in ready]
                    if _needs_tables(name):
                        if tables is None:
                            tables = pool.submit(self._migrate, ready.get("postgres"), given_up, watcher)
                        needs.append(tables)
                    ready[name] = pool.submit(self._bring_up, known[name], needs, given_up, watcher)
        except KeyboardInterrupt:
            given_up.set()
            raise
        steps = [*ready.values(), *([tables] if tables else [])]
        errors = [error for step in steps if (error := step.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, _GivenUp)):
            if not any(state.pid for state in self.states().values()):
                self.supervisor.shutdown()
            raise error

    def down(
        self, only: tuple[str, ...] = (), *, wipe: bool = False, watcher: Watcher = lambda name, event: None
    ) -> None:
        """Stop everything in reverse order, or `only` these programs. `wipe` also deletes all data and the folder."""
        stopped: dict[str, Future[None]] = {}
        running = [name for name, state in self.states().items() if _is_kept_up(state) and name in (only or NAMES)]
        with ThreadPoolExecutor(len(NAMES)) as pool:
            for name in reversed(running):
                needed_by = [stopped[other] for other in stopped if name in _PROGRAMS[other].needs]
                stopped[name] = pool.submit(self._take_down, name, needed_by, watcher)
        if only and any(map(_is_kept_up, self.states().values())):
            return
        self.supervisor.shutdown()
        if wipe:
            for name in ("postgres", "clickhouse"):
                unprivileged.delete_outside(self.folder / name)
            shutil.rmtree(self.folder, ignore_errors=True)

    def states(self) -> dict[str, State]:
        """Return the state of each program that the supervisor knows, in the order of starting."""
        states = self.supervisor.states()
        return {name: states[name] for name in NAMES if name in states}

    def _replaced(self, name: str) -> bool:
        setting = _PROGRAMS[name].replaced_by
        return setting is not None and self.settings.is_replaced(setting)

    def _bring_up(
        self, program: Program, needs: list[Future[None]], given_up: threading.Event, watcher: Watcher
    ) -> None:
        try:
            for need in needs:
                need.result()
            state = self.supervisor.states()[program.name]
            if state.name == "BACKOFF":  # it died, and waits longer after each try: try now
                self.supervisor.stop(program.name)
            if state.pid == 0:
                _check_ports(program)
                watcher(program.name, "starting")
                program.prepare()
                self.supervisor.start(program.name)
            self._await_ready(program, given_up)
            watcher(program.name, "ready")
        except BaseException:
            given_up.set()
            raise

    def _migrate(self, postgres: Future[None] | None, given_up: threading.Event, watcher: Watcher) -> None:
        """Make the tables in PostgreSQL, once it is ready. `postgres` is None when this `up` does not start it."""
        try:
            if postgres is not None:
                postgres.result()
            watcher(TABLES, "migrating")
            migrate(self.settings.urls()["LOGPIPE_POSTGRES_URL"])
            watcher(TABLES, "ready")
        except BaseException:
            given_up.set()
            raise

    def _take_down(self, name: str, needed_by: list[Future[None]], watcher: Watcher) -> None:
        for other in needed_by:
            other.result()
        watcher(name, "stopping")
        self.supervisor.stop(name)
        watcher(name, "stopped")

    def _await_ready(self, program: Program, given_up: threading.Event) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while (missing := program.ready()) is not None:
            state = self.supervisor.states()[program.name]
            if state.name in ("BACKOFF", "FATAL", "EXITED"):
                raise NeedsOperator(
                    f"{program.name} ends at once ({state.description}). {self._end_of_log(program.name)}"
                )
            if time.monotonic() > deadline:
                raise NeedsOperator(
                    f"{program.name} is not ready after {READY_SECONDS} s: {missing}. {self._end_of_log(program.name)}"
                )
            if given_up.wait(_POLL_SECONDS):
                raise _GivenUp(f"{program.name}: not waited for, because another failed")

    def _end_of_log(self, name: str) -> str:
        log = self.supervisor.log_of(name)
        end: list[str] = []
        with suppress(OSError):
            end = log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"The end of {log}:", *end])

    def _check_disk(self) -> None:
        """Refuse a new stack on a nearly full disk. A stack with data must start: its retention frees space."""
        has_data = self.folder.exists() and any(each.name != passwords.FOLDER for each in self.folder.iterdir())
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < _FREE_BYTES and not has_data:
            raise NeedsOperator(
                f"only {free >> 20} MiB are free on the disk of {self.folder}, and a new stack needs"
                f" {_FREE_BYTES >> 20} MiB: free some, or set LOGPIPE_STACK to a folder on another disk"
            )


def _needs_tables(name: str) -> bool:
    return "postgres" in _PROGRAMS[name].needs


def _check_ports(program: Program) -> None:
    for setting, port in program.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise NeedsOperator(
                    f"{program.name} cannot have port {port}: {_holder(port) or error}."
                    f" Stop that, or set {setting} to a free port, and let other commands find this stack by"
                    ' `eval "$(logpipe env)"`'
                ) from error


def _holder(port: int) -> str:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"process {process.pid} ({' '.join(process.cmdline())[:100]}) listens there"
    return ""


def _is_kept_up(state: State) -> bool:
    """Return whether the program runs, or the supervisor starts it again because it has died."""
    return bool(state.pid) or state.name == "BACKOFF"
