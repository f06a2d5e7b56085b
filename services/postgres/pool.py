"""A pool of PostgreSQL connections that the threads of a process share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from services.postgres.connection import PIPELINE, Connection, session_settings, translated, watch_shutdown


class Pool:
    """Autocommit connections whose time zone is UTC. Thread-safe.

    The pool connects in the background, so opening a pool never blocks. A connection is checked before it is lent, and
    a broken one is replaced, so callers go on once a failed server is back.
    """

    def __init__(
        self,
        url: str,
        max_connections: int = 4,
        timeout: float = 2.0,
        configure: Callable[[Connection], None] | None = None,
        options: str = "",
        name: str = PIPELINE,
    ) -> None:
        """`timeout`: seconds that a caller waits for a connection.

        `configure` is called once for each new connection. `options`: more settings of a session, as `-c name=value`.
        `name` is shown as the application_name of the sessions.
        """

        def configured(connection: Connection) -> None:
            watch_shutdown(connection, url)
            if configure:
                configure(connection)

        self._pool: ConnectionPool[psycopg.Connection[Any]] = ConnectionPool(
            url,
            min_size=1,
            max_size=max_connections,
            timeout=timeout,
            configure=configured,
            check=ConnectionPool.check_connection,
            kwargs={"autocommit": True, **session_settings(name, options)},
            open=True,
        )

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection until the `with` statement ends.

        Raises StoreDown when no connection is free or can be made within the timeout. A psycopg error that is raised
        inside the `with` statement becomes a StoreDown, too.
        """
        with translated(), self._pool.connection() as connection:
            yield connection

    def close(self) -> None:
        """Close the connections; blocks until those that are lent have come back, for some seconds at most."""
        self._pool.close()
