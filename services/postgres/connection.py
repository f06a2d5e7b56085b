"""Connections and pools of PostgreSQL, and its errors as the pipeline's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from services.core.errors import StoreDown

NAME = "postgres"

Connection = psycopg.Connection[Any]
Pool = ConnectionPool[Connection]

_DEAD_PEER: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds: keepalives do not notice a lost peer while data is under way
}
"""These settings let the client notice within seconds that the server's host is lost."""


def connect(url: str, *, autocommit: bool = True) -> Connection:
    """Open a connection whose time zone is UTC. Raises StoreDown."""
    with translated():
        return psycopg.connect(
            url,
            autocommit=autocommit,
            options="-c timezone=UTC -c idle_in_transaction_session_timeout=20s",
            **_DEAD_PEER,
        )


def open_pool(
    url: str,
    max_connections: int,
    timeout: float,
    configure: Callable[[Connection], None] | None = None,
    options: str = "",
) -> Pool:
    """Open a pool of autocommit connections whose time zone is UTC; it connects in the background.

    `timeout`: seconds that a caller waits for a connection. `options`: more settings of a session, as `-c name=value`.
    """
    return ConnectionPool(
        url,
        min_size=1,
        max_size=max_connections,
        timeout=timeout,
        configure=configure,
        check=ConnectionPool.check_connection,
        kwargs={"autocommit": True, "options": f"-c timezone=UTC {options}".rstrip(), **_DEAD_PEER},
        open=True,
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's errors into StoreDown('postgres')."""
    try:
        yield
    except psycopg.Error as error:
        raise StoreDown(NAME, str(error).strip() or type(error).__name__) from error
