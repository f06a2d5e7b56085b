"""Migrations: the SQL files that make and change the tables of a room, each applied once, by yoyo-migrations.

A room that has tables brings a folder of files ROOM-NUMBER-WHAT.sql, which are applied in the order of their names.
`logpipe migrate` applies the migrations of all rooms. Every other process only looks whether they were applied
(`require`).

A migration only adds, so that processes of the release before it go on while it runs and after it ran: tables, columns
with a default, indexes on small tables. What no process uses any more is dropped by a migration of a later release. A
migration is one transaction together with the mark that it was applied, so a process that is killed leaves all of it
or nothing. A statement that cannot be part of a transaction, such as CREATE INDEX CONCURRENTLY, is maintenance.
"""

import glob
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri

from services.core.errors import NeedsOperator, StoreDown
from services.postgres.connection import NAME, Connection, translated
from services.runtime import logs

COMMAND = "logpipe migrate"

_LOCK = 7_316_001  # advisory lock, which releases without this module take, too, before they change the ledger's tables
_TABLE = "applied_migrations"
_NAMES = SQL("SELECT migration_id FROM {}").format(Identifier(_TABLE))
_LOCK_TIMEOUT = "2s"  # while a change waits for a table, all later users of that table wait behind the change
_PAUSE_SECONDS, _PATIENCE_SECONDS = 1.0, 60.0
_log = logs.get("migrations")


@dataclass(frozen=True, slots=True)
class Migrations:
    """The migrations of one room. `folder` holds its SQL files, whose names no other room uses."""

    folder: Path

    def names(self) -> list[str]:
        """Return the migrations that this release knows, in the order in which they are applied."""
        return sorted(file.stem for file in self.folder.glob("*.sql"))


def require(connection: Connection, room: Migrations) -> None:
    """Raise StoreDown unless every migration of `room` that this release knows was applied.

    Called by every process before it uses the room's tables. A process that gets StoreDown tries again later, so it
    goes on once `logpipe migrate` has run. Migrations of a newer release do no harm.
    """
    applied = _applied(connection)
    missing = [name for name in room.names() if name not in applied]
    if missing:
        raise StoreDown(NAME, f"migration {missing[0]} was not applied to this database: run `{COMMAND}`")


@contextmanager
def exclusive(connection: Connection) -> Iterator[None]:
    """Hold the lock of all migrations; waits until no other session holds it. Raises StoreDown.

    The lock ends with the session, so a process that was killed does not leave it behind. A session may take the lock
    again while it holds it. `connection` must not be closed when idle (`closed_when_idle=False`).
    """
    with translated():
        if connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone() != (True,):
            _log.info("waiting for another migration to end")
            connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
    try:
        yield
    finally:
        with translated():
            if not connection.closed:
                connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def apply(connection: Connection, *rooms: Migrations) -> list[str]:
    """Apply the migrations of `rooms` that were not applied yet; return their names. Blocks until all are applied.

    A table that is in use is waited for, a moment at a time, for up to a minute for each migration. Raises StoreDown,
    and NeedsOperator when an SQL file is wrong. `connection` is in autocommit mode and in no transaction.
    """
    done = []
    with exclusive(connection), translated():
        backend = _Backend(connection)
        for migration in backend.to_apply(read_migrations(*(glob.escape(str(room.folder)) for room in rooms))):
            _apply_one(backend, migration)
            done.append(str(migration.id))
            _log.info("migration applied", migration=migration.id)
    return done


def _apply_one(backend: "_Backend", migration: Any) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            with backend.transaction():
                backend.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                migration.process_steps(backend, "apply")
                backend.mark_one(migration, log=False)
            return
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise
            _log.warning("a table is in use, trying again", migration=migration.id, seconds=_PAUSE_SECONDS)
        except psycopg.ProgrammingError as error:
            raise NeedsOperator(f"migration {migration.id} failed: {error}") from error
        time.sleep(_PAUSE_SECONDS)


def _applied(connection: Connection) -> set[str]:
    with translated():
        if connection.execute("SELECT to_regclass(%s)", (_TABLE,)).fetchone() == (None,):
            return set()
        return {name for (name,) in connection.execute(_NAMES)}


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo on a connection of ours, which holds the lock of all migrations.

    yoyo's own lock is a row of a table, which a killed process leaves behind, and yoyo would apply each migration over
    a second connection and mark it afterwards.
    """

    def __init__(self, connection: Connection) -> None:
        self._borrowed = connection
        super().__init__(parse_uri("postgresql+psycopg://"), _TABLE)

    def connect(self, dburi: Any) -> Connection:
        return self._borrowed

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:
        yield
