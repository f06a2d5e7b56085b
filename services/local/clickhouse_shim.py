"""ClickHouse's HTTP interface over the embedded engine (chdb), so that clickhouse-connect finds a server.

One process serves one data folder. Each request gets an engine session of its own (about 1 ms), so that the settings,
database and temporary tables of one request never reach another; requests with the same `session_id` share a session.

The engine chooses the query ids itself. The shim passes a request's `query_id` on as the setting `log_comment`, and
`KILL QUERY` finds the query by that setting. External data and form-encoded parameters (multipart bodies) are not
supported.

A request by another method than POST changes nothing. What clients may do is in `clickhouse_rights`. Before the engine
is started, the process takes the user of `unprivileged` and confines itself to its data folder.
"""

import importlib
import json
import os
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
from anyio import from_thread
from chdb.session import Session
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.local import clickhouse_bodies, clickhouse_inserts, clickhouse_rights, confinement, unprivileged
from services.local.clickhouse_errors import ACCESS_DENIED, BAD_ARGUMENTS, CANNOT_OPEN_FILE, NOT_IMPLEMENTED, QueryError
from services.local.clickhouse_inserts import Insert
from services.local.supervision import MARK
from services.runtime import http, logs
from services.runtime.request_bodies import InFlight, Reservation
from services.runtime.settings import ListenSettings

HOST = "127.0.0.1"
_MERGES_NICE = 10
_log = logs.get("clickhouse-shim")

_LOADED_LATE = ("anyio._backends._asyncio", "encodings.idna")
"""Modules that the HTTP server imports at their first use, when the confined process can no longer read them."""

# The engine reads these paths beside its data: sizes of the machine, its own threads and memory, random numbers and
# time zones.
_ENGINE_READS = tuple(
    map(
        Path,
        (
            "/dev/urandom",
            "/proc/cpuinfo",
            "/proc/meminfo",
            "/proc/self/task",
            "/sys/devices/system",
            "/sys/fs/cgroup",
            "/usr/share/zoneinfo",
        ),
    )
)
_NOT_SETTINGS = {
    "buffer_size",
    "client_protocol_version",
    "compress",
    "database",
    "decompress",
    "default_format",
    "password",
    "query",
    "query_id",
    "quota_key",
    "role",
    "session_check",
    "session_id",
    "session_timeout",
    "user",
    "wait_end_of_query",
}
_SESSION_SECONDS, _MOST_SESSION_SECONDS = "60", 3600  # as in a ClickHouse server
_TIMEOUT = re.compile(r"[0-9]{1,4}").fullmatch
_KILL_QUERY = re.compile(r"\s*KILL\s+QUERY\b", re.IGNORECASE)
_QUERY_ID = re.compile(r"\bquery_id\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    body: bytes
    format: str
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Kept:
    session: Session
    lock: threading.Lock = field(default_factory=threading.Lock)
    until: float = 0.0


class Engine:
    """The engine on one data folder. Thread-safe; every method blocks."""

    def __init__(self, folder: Path, rights: Path) -> None:
        """`rights`: the engine's configuration, from `clickhouse_rights.write`."""
        self._folder = str(folder.resolve())
        self._identity = _identity(folder)
        # Merges yield to queries. The engine ends itself if one of its threads may not return to its former priority.
        nice = _MERGES_NICE if unprivileged.may_lower_priority() else 0
        # The engine stays loaded as long as one session is open.
        self._anchor = Session(f"{self._folder}?os_threads_nice_value_merge_mutate={nice}&config-file={rights}")
        clickhouse_rights.close_default_database(self._anchor)
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        for kept in self._kept.values():
            kept.session.close()
        self._anchor.close()

    def execute(self, arguments: Mapping[str, str], body: bytes, default_format: str, read_only: bool) -> Reply:
        """Run a request. `arguments` are those of the URL: query, database, session_id, param_x, and settings.

        Raises QueryError.
        """
        insert, statement = _parsed(arguments.get("query", "").encode(), body)
        _check(f"{insert.target} {insert.settings}" if insert else statement, arguments, read_only)
        if _KILL_QUERY.match(statement):
            statement = _QUERY_ID.sub("Settings['log_comment']", statement)
        settings = _settings(arguments) | (clickhouse_rights.READ_ONLY if read_only else {})
        parameters = {k.removeprefix("param_"): v for k, v in arguments.items() if k.startswith("param_")}
        with self._session(arguments) as session:
            try:
                if "database" in arguments:
                    session.query(f"USE {_identifier(arguments['database'])}")
                if settings:
                    session.query("SET " + ", ".join(f"{_name(k)} = {_literal(v)}" for k, v in settings.items()))
                if insert:
                    written = clickhouse_inserts.run(session, insert)
                    self._refuse_another_folder()
                    return Reply(b"", insert.format, written_rows=written)
                result = session.query(statement, default_format, params=parameters or None)
                return Reply(
                    result.bytes(),
                    default_format,
                    read_rows=result.storage_rows_read(),
                    read_bytes=result.storage_bytes_read(),
                    seconds=result.elapsed(),
                )
            except RuntimeError as error:
                raise QueryError(str(error)) from error
            finally:
                if settings and "session_id" in arguments:
                    session.query("SET " + ", ".join(f"{_name(k)} = DEFAULT" for k in settings))

    def _refuse_another_folder(self) -> None:
        """The engine creates the folder again when another program moves the folder away, and reports success."""
        if _identity(Path(self._folder)) != self._identity:
            raise QueryError(
                f"{self._folder} is not the folder that this process was started on: put the folder back, and restart"
                " this process",
                CANNOT_OPEN_FILE,
            )

    @contextmanager
    def _session(self, arguments: Mapping[str, str]) -> Iterator[Session]:
        if "session_id" not in arguments:
            session = Session(self._folder)
            try:
                yield session
            finally:
                session.close()
            return
        with self._lock:
            now = time.monotonic()
            for name in [n for n, kept in self._kept.items() if kept.until < now and not kept.lock.locked()]:
                self._kept.pop(name).session.close()
            kept = self._kept.setdefault(arguments["session_id"], _Kept(Session(self._folder)))
            kept.until = now + int(arguments.get("session_timeout", _SESSION_SECONDS))
        with kept.lock:
            yield kept.session


def _parsed(query: bytes, body: bytes) -> tuple[Insert | None, str]:
    """Return the insert if rows follow the statement, else the statement."""
    text = query + b"\n" + body if query else body
    try:
        insert = clickhouse_inserts.parse(text)
        return insert, "" if insert else text.decode()
    except UnicodeDecodeError as error:
        raise QueryError(f"the statement is not UTF-8: {error}", BAD_ARGUMENTS) from error


def _check_arguments(arguments: Mapping[str, str], default_format: str) -> None:
    """Raise QueryError for an argument that no session or no header of the reply can have."""
    timeout = arguments.get("session_timeout", _SESSION_SECONDS)
    if not _TIMEOUT(timeout) or int(timeout) > _MOST_SESSION_SECONDS:
        reason = f"session_timeout {timeout!r} is not a number of seconds up to {_MOST_SESSION_SECONDS}"
        raise QueryError(reason, BAD_ARGUMENTS)
    for name, text in (("query_id", arguments.get("query_id", "")), ("default_format", default_format)):
        if not (text.isascii() and text.isprintable() and text == text.strip()):
            raise QueryError(f"{name} {text!r} does not fit into a header of the reply", BAD_ARGUMENTS)


def _check(statement: str, arguments: Mapping[str, str], read_only: bool) -> None:
    """Raise QueryError for a request that the engine itself would not refuse."""
    if refusal := clickhouse_rights.refusal(statement, read_only):
        raise QueryError(refusal, ACCESS_DENIED)
    if read_only and "session_id" in arguments:  # the session would be read-only from now on
        raise QueryError("a request with a session_id must use POST", NOT_IMPLEMENTED)


def _settings(arguments: Mapping[str, str]) -> dict[str, str]:
    settings = {k: v for k, v in arguments.items() if k not in _NOT_SETTINGS and not k.startswith("param_")}
    if "query_id" in arguments:
        settings["log_comment"] = arguments["query_id"]
    return settings


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _name(setting: str) -> str:
    if not setting.isidentifier():
        raise QueryError(f"{setting!r} is no setting", BAD_ARGUMENTS)
    return setting


def _identifier(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _literal(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def make_app(folder: Path) -> Starlette:
    """Return the app. `folder` is that of the program; the data lies where the unprivileged user can reach it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        data = unprivileged.prepare_data(folder)
        data.mkdir(exist_ok=True)
        unprivileged.hand_over(data)
        rights = data.with_name("rights.xml")
        clickhouse_rights.write(rights)
        for module in _LOADED_LATE:
            importlib.import_module(module)
        os.chdir(data)  # the engine looks at its working directory
        # The server has started no thread yet: a thread that runs already would not be confined.
        unprivileged.become()
        confinement.forget_environment(MARK)
        if not confinement.confine(data, (rights, *_ENGINE_READS)):
            _log.warning("this kernel cannot confine the engine: clients may read the files that its user may read")
        app.state.engine = Engine(data, rights)
        yield
        app.state.engine.close()

    app = Starlette(
        routes=[
            Route("/ping", _ping),
            Route("/", _query, methods=["GET", "POST"]),
        ],
        lifespan=lifespan,
    )
    app.state.in_flight = InFlight(clickhouse_bodies.MAX_IN_FLIGHT_BYTES)
    http.guard_origins(app, ListenSettings(host=HOST), frozenset({"/ping"}), links=False)
    return app


async def _ping(request: Request) -> Response:
    return PlainTextResponse("Ok.\n")


async def _query(request: Request) -> Response:
    arguments = dict(request.query_params)
    headers: dict[str, str] = {}
    default_format = arguments.get("default_format") or request.headers.get("X-ClickHouse-Format", "TabSeparated")
    arguments |= {k: v for k, v in [("database", request.headers.get("X-ClickHouse-Database"))] if v}

    def run(body: bytes, reservation: Reservation) -> Reply:
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise QueryError("multipart bodies are not supported by the embedded engine", NOT_IMPLEMENTED)
        encoding = request.headers.get("content-encoding", "")
        data = clickhouse_bodies.decoded(body, encoding, lambda size: from_thread.run_sync(reservation.add, size))
        engine: Engine = request.app.state.engine
        return engine.execute(arguments, data, default_format, read_only=request.method != "POST")

    try:
        _check_arguments(arguments, default_format)
        headers["X-ClickHouse-Query-Id"] = arguments.get("query_id") or str(uuid.uuid4())
        in_flight: InFlight = request.app.state.in_flight
        with in_flight.reserve() as reservation:
            body = await clickhouse_bodies.read(request, reservation)
            if not arguments.get("query") and not body:
                return await _ping(request)
            reply = await run_in_threadpool(run, body, reservation)
    except QueryError as error:
        headers["X-ClickHouse-Exception-Code"] = str(error.code)
        return PlainTextResponse(f"{error}\n", error.status, headers)
    headers["X-ClickHouse-Format"] = reply.format
    headers["X-ClickHouse-Timezone"] = "UTC"
    headers["X-ClickHouse-Summary"] = json.dumps(
        {
            "read_rows": str(reply.read_rows),
            "read_bytes": str(reply.read_bytes),
            "written_rows": str(reply.written_rows),
            "elapsed_ns": str(int(reply.seconds * 1e9)),
        }
    )
    return Response(reply.body, headers=headers, media_type="text/plain; charset=UTF-8")


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="The folder with the engine's data.")
@click.option("--port", type=int, required=True, help="Port on 127.0.0.1.")
def main(folder: Path, port: int) -> None:
    """Serve the embedded ClickHouse engine by HTTP on 127.0.0.1."""
    http.serve(make_app(folder.resolve()), HOST, port)


if __name__ == "__main__":
    main()
