"""Reads the lake by a Spark Connect server, the cluster's engine."""

import re
import socket
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from itertools import islice
from threading import Lock
from typing import ClassVar

from pyspark.errors import PySparkException
from pyspark.errors.exceptions.connect import SparkConnectGrpcException
from pyspark.sql import DataFrame
from pyspark.sql.connect.client import DefaultChannelBuilder
from pyspark.sql.connect.session import SparkSession

from services.core.errors import StoreDown
from services.core.result_size import gather_pages
from services.core.rows import Row
from services.lake import NAME
from services.lake.reader import LakeReader, StatementResult, TimeLimit
from services.lake.settings import SparkConnectSettings
from services.lake.snapshot import Snapshot
from services.lake.sql import Dialect, Statement
from services.lake.table import Result, started

_LABEL = f"{NAME} (spark)"
_CONNECT_SECONDS = 3.0
_INTERRUPT_SECONDS = 5.0
_BETWEEN_SECONDS = 0.05
_ROWS_AT_ONCE = 100

# Otherwise the channels of a process share a connection, and a new one waits while an older one pauses after an error.
_CHANNEL = [("grpc.use_local_subchannel_pool", 1)]

_DETAILS = re.compile(r'details = "(.*)"')  # in gRPC's error, which is a page long


class SparkSql:
    """Spark's dialect. It names the version, so that all statements of a query see the same rows."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.table = f"delta.{self.name(snapshot.uri)} VERSION AS OF {snapshot.version:d}"
        self.parameters: dict[str, str] = {}

    def name(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def text(self, value: str) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f":{name}"

    def instant(self, microseconds: int) -> str:
        return f"timestamp_micros({microseconds:d})"

    def microseconds(self, time: str) -> str:
        return f"unix_micros({time})"

    def contains(self, text: str, searched: str) -> str:
        return f"contains({text}, {searched})"


class SparkReader(LakeReader):
    label: ClassVar[str] = _LABEL

    def __init__(self, settings: SparkConnectSettings) -> None:
        super().__init__(settings)
        self._url = settings.spark_connect_url
        self._lock = Lock()
        self._session: SparkSession | None = None

    def close(self) -> None:
        super().close()
        if (session := self._session) is not None:
            self._session = None
            wait([started(session.stop)], _CONNECT_SECONDS)

    def _dialect(self, snapshot: Snapshot) -> Dialect:
        return SparkSql(snapshot)

    def _find(self, snapshot: Snapshot, statement: Statement, limit: TimeLimit) -> StatementResult:
        return self._within_session(lambda session: _find(session, snapshot, statement, limit))

    def _stream(self, snapshot: Snapshot, statement: Statement) -> Iterator[Row]:
        frame = self._within_session(lambda session: _frame(session, statement))
        with _translated():
            yield from map(tuple, frame.toLocalIterator())

    def _within_session(self, work: Callable[[SparkSession], Result]) -> Result:
        """Run `work` with the session, once more with a new session if the kept one is lost. Raises StoreDown."""
        with _translated():
            session, is_new = self._open()
            try:
                return work(session)
            except PySparkException as error:
                if not _is_lost(session, error):
                    raise
                self._forget(session)
                if is_new:
                    raise
            # The session is from an earlier query, and the server has ended it or was restarted since.
            session, _ = self._open()
            return work(session)

    def _open(self) -> tuple[SparkSession, bool]:
        """Return the session, and whether it is new."""
        with self._lock:
            if self._session is not None:
                return self._session, False
            self._session = _connect(self._url)
            return self._session, True

    def _forget(self, session: SparkSession) -> None:
        with self._lock:
            if self._session is session:
                self._session = None
        started(session.stop)  # which waits for the server


@contextmanager
def connected(url: str) -> Iterator[SparkSession]:
    """Yield a session of its own, which is ended afterwards. Blocks. Raises StoreDown. Called by the benchmarks."""
    with _translated():
        session = _connect(url)
        try:
            yield session
        finally:
            wait([started(session.stop)], _CONNECT_SECONDS)


def _connect(url: str) -> SparkSession:
    channel = DefaultChannelBuilder(url, _CHANNEL)
    _reach(channel.endpoint)
    session = SparkSession(channel)
    session.client.set_retry_policies([])  # retries would hide for minutes that the server is unreachable
    session.client.disable_reattachable_execute()
    return session


def _find(session: SparkSession, snapshot: Snapshot, statement: Statement, limit: TimeLimit) -> StatementResult:
    tag = uuid.uuid4().hex
    found = started(partial(_collect, session, statement, tag))
    with limit.stop.calling(lambda: _end(session, tag, found)):
        if wait([found], limit.left()).done:
            return StatementResult(found.result(), snapshot.files_within(statement.file_conditions))
    if wait([_end(session, tag, found)], _INTERRUPT_SECONDS).done:
        raise limit.passed()
    raise StoreDown(_LABEL, "a query takes too long, and the server did not stop it")


def _end(session: SparkSession, tag: str, found: Future[list[Row]]) -> Future[None]:
    return started(partial(_interrupt, session, tag, found))


def _interrupt(session: SparkSession, tag: str, found: Future[list[Row]]) -> None:
    """Interrupt the query, again and again: between two of its operations an interrupt has no effect."""
    while not found.done() and not session.interruptTag(tag):
        wait([found], _BETWEEN_SECONDS)


def _collect(session: SparkSession, statement: Statement, tag: str) -> list[Row]:
    session.addTag(tag)  # of this thread
    rows = map(tuple, _frame(session, statement).toLocalIterator())
    return gather_pages(_in_chunks(rows))


def _in_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
        yield chunk


def _frame(session: SparkSession, statement: Statement) -> DataFrame:
    return session.sql(statement.text, args=dict(statement.parameters))


def _reach(endpoint: str) -> None:
    """Fail at once where nothing listens, because the client waits long for an unreachable host."""
    host, _, port = endpoint.rpartition(":")
    socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()


def _is_lost(session: SparkSession, error: PySparkException) -> bool:
    """Return whether the session is unusable; otherwise the query was at fault."""
    condition = error.getCondition() or ""
    connection_broke = isinstance(error, SparkConnectGrpcException) and not condition
    return session.client.is_closed or connection_broke or condition.startswith("INVALID_HANDLE.SESSION")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (PySparkException, OSError) as error:
        said = str(error).strip()
        details = _DETAILS.search(said)
        raise StoreDown(_LABEL, (details[1] if details else said.split("\n", 1)[0])[:500]) from error
