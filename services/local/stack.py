"""The whole local stack: which programs it has, bringing them up in order, taking them down in reverse."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

from services.core.errors import Invalid, NeedsOperator
from services.local import clickhouse, hdfs, kafka, postgres, processes
from services.local.program import Program
from services.local.settings import LocalSettings
from services.local.supervision import State, Supervisor

READY_SECONDS = 90
_POLL_SECONDS = 0.1
_FREE_BYTES = 2 << 30

# In the order in which they start; each names those it waits for.
_PROGRAMS: Mapping[str, Callable[[LocalSettings], Program]] = {
    "postgres": postgres.postgres,
    "kafka": kafka.kafka,
    "namenode": hdfs.namenode,
    "datanode": hdfs.datanode,
    "clickhouse": clickhouse.clickhouse,
    "ingest-api": processes.ingest_api,
    "stream-to-store": processes.stream_to_store,
    "stream-to-lake": processes.stream_to_lake,
    "query-api": processes.query_api,
    "generator": processes.generator,
}
NAMES = tuple(_PROGRAMS)
_REPLACED_BY = {
    "postgres": "postgres_url",
    "kafka": "kafka_url",
    "namenode": "hdfs_url",
    "datanode": "hdfs_url",
    "clickhouse": "clickhouse_url",
}

Watcher = Callable[[str, str], None]
"""Told the name of a program and what became of it: starting, ready."""


class Stack:
    """One stack in one folder; all methods block. As a context it is up inside and down after.

    `only`: the names of the programs it is about; all when empty. Of these, whatever a URL replaces is left out.
    """

    def __init__(self, settings: LocalSettings, only: tuple[str, ...] = ()) -> None:
        if unknown := set(only) - set(NAMES):
            raise Invalid(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
        self.settings = settings
        self.folder = settings.folder
        self.supervisor = Supervisor(self.folder)
        self._only = only or NAMES

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
        replaced = {name for name, url in _REPLACED_BY.items() if getattr(self.settings, url)}
        return tuple(name for name in NAMES if name in self._only and name not in replaced)

    def program(self, name: str) -> Program:
        return _PROGRAMS[name](self.settings)

    def up(self, watcher: Watcher = lambda name, event: None) -> None:
        """Start what does not run and return when all is ready; raises NeedsOperator, saying what to do."""
        self._check_disk()
        running = self.supervisor.states()
        known = {name: self.program(name) for name in NAMES if name in self.names or name in running}
        for program in known.values():
            program.folder.mkdir(parents=True, exist_ok=True)
        self.supervisor.configure(known.values())
        failed = threading.Event()
        ready: dict[str, Future[None]] = {}
        with ThreadPoolExecutor(len(self.names) or 1) as pool:
            for name in self.names:  # needs come first in this order, so their futures exist
                needs = [ready[need] for need in known[name].needs if need in ready]
                ready[name] = pool.submit(self._bring_up, known[name], needs, failed, watcher)
        for future in ready.values():
            if error := future.exception():
                raise error

    def down(self, *, wipe: bool = False, watcher: Watcher = lambda name, event: None) -> None:
        """Stop everything, in reverse order; nothing is left running. `wipe`: delete the folder, too."""
        states = self.supervisor.states()
        for name in reversed(NAMES):
            if name in states and states[name].pid:
                watcher(name, "stopping")
                self.supervisor.stop(name)
                watcher(name, "stopped")
        self.supervisor.shutdown()
        if wipe:
            shutil.rmtree(self.folder, ignore_errors=True)

    def states(self) -> dict[str, State]:
        """Of all programs the supervisor knows, in the order of starting."""
        states = self.supervisor.states()
        return {name: states[name] for name in NAMES if name in states}

    def _bring_up(self, program: Program, needs: list[Future[None]], failed: threading.Event, watcher: Watcher) -> None:
        for need in needs:
            need.result()
        try:
            if self.supervisor.states()[program.name].pid == 0:
                _check_ports(program)
                watcher(program.name, "starting")
                program.prepare()
                self.supervisor.start(program.name)
            self._await_ready(program, failed)
            watcher(program.name, "ready")
        except BaseException:
            failed.set()
            raise

    def _await_ready(self, program: Program, failed: threading.Event) -> None:
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
            if failed.wait(_POLL_SECONDS):
                return

    def _end_of_log(self, name: str) -> str:
        log = self.supervisor.log_of(name)
        end: list[str] = []
        with suppress(OSError):
            end = log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"The end of {log}:", *end])

    def _check_disk(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < _FREE_BYTES:
            raise NeedsOperator(
                f"only {free >> 20} MiB are free on the disk of {self.folder}, and {_FREE_BYTES >> 20} MiB are needed:"
                " free some, run `logpipe down --wipe`, or set LOGPIPE_STACK to a folder on another disk"
            )


def _check_ports(program: Program) -> None:
    for setting, port in program.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise NeedsOperator(
                    f"{program.name} cannot have port {port}: {_holder(port) or error}."
                    f" Stop that, or set {setting} to a free port"
                ) from error


def _holder(port: int) -> str:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"process {process.pid} ({' '.join(process.cmdline())[:100]}) listens there"
    return ""
