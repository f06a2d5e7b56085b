"""Connections to PostgreSQL, the settings of their sessions, and the translation of PostgreSQL's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import psycopg

from services.core.errors import Invalid, StoreDown
from services.postgres.shutdown import Sessions

NAME = "postgres"
PIPELINE = "logpipe"
"""The application_name of sessions that have no name of their own."""

Connection = psycopg.Connection[Any]
Cursor = psycopg.Cursor[Any]

_DEAD_SERVER: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds: keepalives do not notice a lost peer while data is under way
}
"""These settings let the client notice within seconds that the server's host is lost."""

_DEAD_CLIENT = (
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=120s"
    " -c client_connection_check_interval=5s"
)
"""These settings let the server end a session within seconds after the client's host is lost.

A client that only reads slowly counts as lost, too, when it takes nothing for `tcp_user_timeout`.
"""

_sessions = Sessions()


def connect(url: str, *, autocommit: bool = True, name: str = PIPELINE, closed_when_idle: bool = True) -> Connection:
    """Open a connection whose time zone is UTC. Raises StoreDown.

    `name` is shown as the session's application_name. `closed_when_idle` is False for a session whose advisory locks
    must last: the server's shutdown then waits until the holder closes the session.
    """
    with translated():
        connection = psycopg.connect(
            url,
            autocommit=autocommit,
            **session_settings(name, "-c idle_in_transaction_session_timeout=20s"),
        )
    if closed_when_idle:
        watch_shutdown(connection, url)
    return connection


def session_settings(name: str, options: str = "") -> dict[str, Any]:
    """Return the keyword arguments of `psycopg.connect` that every session of the pipeline has.

    `name` is shown as the session's application_name. `options`: more settings of the session, as `-c name=value`.
    """
    return {
        "application_name": name,
        "options": f"-c timezone=UTC {_DEAD_CLIENT} {options}".rstrip(),
        **_DEAD_SERVER,
    }


def watch_shutdown(connection: Connection, url: str) -> None:
    """Close `connection` when its server shuts down while the connection is idle. `url` opens another session there."""
    _sessions.add(connection, url)


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's errors into StoreDown('postgres')."""
    try:
        yield
    except psycopg.Error as error:
        raise StoreDown(NAME, str(error).strip() or type(error).__name__) from error


def environment(url: str) -> dict[str, str]:
    """The variables by which PostgreSQL's own programs find the database of `url`: a command line shows a password."""
    parsed = psycopg.pq.Conninfo.parse(url.encode())
    return {option.envvar.decode(): option.val.decode() for option in parsed if option.val and option.envvar}


def in_database(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return urlsplit(url)._replace(path=f"/{quote(name, safe='')}").geturl()


def database_of(url: str) -> str:
    """The name of the database that `url` names. Raises Invalid if it names none."""
    if not (name := unquote(urlsplit(url).path.removeprefix("/"))):
        raise Invalid("LOGPIPE_POSTGRES_URL names no database: postgresql://user@host:port/database")
    return name


def major_version(connection: Connection) -> int:
    """The major version of the server."""
    return connection.info.server_version // 10_000
