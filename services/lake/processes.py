"""Runs the lake's queries in processes that can be killed: DataFusion cannot be interrupted or limited in memory.

Each process runs one query at a time, and keeps the tables that it has opened. A process whose query takes too long, or
has no caller any more, is killed. The next query starts another process: it is forked in some 10 ms from a process
that has loaded the engine's code and nothing else, and opens the table again, 0.2 s in all.
"""

import multiprocessing
import os
import queue
import resource
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import NamedTuple

from services.core.errors import UNEXPECTED, LogpipeError, StoreDown
from services.core.ports import DEFAULT_QUERY_SECONDS
from services.core.queries import Query, QueryResult
from services.core.stopping import Stop
from services.lake import NAME
from services.lake.embedded import EmbeddedReader, OutOfMemory
from services.lake.reader import TimeLimit
from services.runtime import logs
from services.runtime.settings import LakeSettings

PROCESSES = 2
"""The number of queries of the lake that run at the same time in one query API. Further queries wait."""

ENGINE_BYTES = 192 << 20
"""Memory that the engine may use for a query, by its own count. A query that needs more is refused."""

PROCESS_BYTES = 512 << 20
"""Memory of one of these processes. Where a query needs more, the process ends and the query is refused.

A process that has needed half of that is replaced: the allocator keeps the memory.
"""

_log = logs.get("lake")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["__main__", "services.lake.preloaded"])

_Failure = tuple[type[LogpipeError], tuple[object, ...], dict[str, object]]


class _Bug(NamedTuple):
    """An error that no code expected. The calling process logs it, because its log is the one that is configured."""

    traceback: str


class _Reply(NamedTuple):
    """`is_worn`: the process has used so much memory that it must be replaced."""

    result: QueryResult | _Failure | _Bug
    is_worn: bool


class ProcessReader(EmbeddedReader):
    """Runs queries in other processes, which are started when needed, and reads everything else in this process."""

    def __init__(self, settings: LakeSettings) -> None:
        super().__init__(settings)
        ensure_running()  # loads the engine's code in about 2 s, while this process continues
        self._processes = [_QueryProcess(settings) for _ in range(PROCESSES)]
        self._idle: queue.LifoQueue[_QueryProcess] = queue.LifoQueue()  # the process used last has opened the tables
        for process in self._processes:
            self._idle.put(process)

    def execute(
        self, query: Query, as_of: int, seconds: float = DEFAULT_QUERY_SECONDS, stop: Stop | None = None
    ) -> QueryResult:
        limit = TimeLimit(self.label, seconds, stop)
        try:
            process = self._idle.get(timeout=limit.left())
        except queue.Empty:
            raise limit.passed() from None
        try:
            return process.execute(query, as_of, limit)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        super().close()
        for process in self._processes:
            process.kill()


class _QueryProcess:
    """One process, seen from the calling process. Only `kill` may be called by another thread."""

    def __init__(self, settings: LakeSettings) -> None:
        self._settings = settings
        self._process: ForkServerProcess | None = None
        self._connection: Connection | None = None

    def execute(self, query: Query, as_of: int, limit: TimeLimit) -> QueryResult:
        connection = self._started()
        with limit.stop.calling(self.kill):
            try:
                connection.send((query, as_of, limit.left()))
                if not connection.poll(limit.left()):
                    raise limit.passed()
                reply: _Reply = connection.recv()
            except (EOFError, OSError) as error:
                raise self._ended() from error
            except BaseException:
                self._end()
                raise
        if reply.is_worn:
            self._end()
        if isinstance(reply.result, QueryResult):
            return reply.result
        if isinstance(reply.result, _Bug):
            _log.error("unexpected error", exception=reply.result.traceback)
            raise LogpipeError(UNEXPECTED)
        raise _error(reply.result)

    def kill(self) -> None:
        """End the process at once. The thread that waits for its result notices."""
        if (process := self._process) is not None:
            process.kill()

    def _started(self) -> Connection:
        if self._connection is None or self._process is None or not self._process.is_alive():
            self._end()
            ours, theirs = _context.Pipe()
            with theirs:
                process = _context.Process(target=_serve, args=(theirs, self._settings), name="lake-query", daemon=True)
                try:
                    process.start()
                except (EOFError, OSError) as error:  # too many open files or processes, too little memory
                    ours.close()
                    raise StoreDown(NAME, f"no process for the query can be started: {error}") from error
            self._process, self._connection = process, ours
        return self._connection

    def _ended(self) -> LogpipeError:
        code = self._end()
        if code == -signal.SIGABRT:  # the engine aborts when it gets no memory
            return OutOfMemory()
        return StoreDown(NAME, f"the process of the query ended with {code}")

    def _end(self) -> int | None:
        """Kill the process if it still runs, and return its exit code."""
        code = None
        if self._process is not None:
            self._process.kill()
            self._process.join()
            code = self._process.exitcode
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None
        return code


def _serve(connection: Connection, settings: LakeSettings) -> None:
    """The main function of the process, which ends when the calling process closes the connection or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group
    requests: queue.SimpleQueue[tuple[Query, int, float]] = queue.SimpleQueue()
    # Not a Worker: this process imports nothing beside the engine, and ends with this thread.
    threading.Thread(target=_serve_all, args=(requests, connection, settings), daemon=True).start()  # noqa: TID251
    try:
        while True:
            requests.put(connection.recv())
    except EOFError:
        os._exit(0)  # even while the other thread runs a query


def _serve_all(
    requests: "queue.SimpleQueue[tuple[Query, int, float]]", connection: Connection, settings: LakeSettings
) -> None:
    try:
        _limit_memory()
        reader, start = EmbeddedReader(settings, ENGINE_BYTES), _peak_bytes()
        while True:
            query, as_of, seconds = requests.get()
            result = _executed(reader, query, as_of, seconds)
            connection.send(_Reply(result, _peak_bytes() - start > PROCESS_BYTES // 2))
    finally:
        os._exit(1)  # otherwise the calling process would wait for a thread that has ended


def _executed(reader: EmbeddedReader, query: Query, as_of: int, seconds: float) -> QueryResult | _Failure | _Bug:
    try:
        return reader.execute(query, as_of, seconds)
    except LogpipeError as error:
        return type(error), error.args, vars(error)
    except MemoryError:
        return OutOfMemory, OutOfMemory().args, {}
    except Exception:  # noqa: BLE001 - the calling process logs it
        return _Bug(traceback.format_exc())


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _limit_memory() -> None:
    """TimeLimit the memory beyond that of the fork: the libraries have reserved several 100 MB without using it."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux
        (reserved,) = (int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData"))
        limit = (reserved << 10) + PROCESS_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _error(failure: _Failure) -> LogpipeError:
    """Rebuild an error without its constructor, whose arguments differ from those that the error keeps."""
    kind, arguments, attributes = failure
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(attributes)
    return error
