"""Restores a backup into a database beside the one in use, makes it fit for use, and then swaps the two by name.

So no process sees a database that is restored in part, a failure changes nothing, and nothing is dropped that has rows.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg.sql import SQL, Identifier

from services.backup import fitting, programs
from services.backup.folder import Backup
from services.core.errors import Conflict, NeedsOperator, StoreDown
from services.ledger.identity import ledger_id
from services.ledger.restore import Leap, has_accepted
from services.migrate.service import migrate
from services.postgres.connection import Connection, connect, database_of, in_database, major_version, translated

_JOBS = 2
_LEAVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Restored:
    """`kept`: the name of the database that was in use before and had rows, '' if it had none. `stores`: to replay."""

    begun_at: datetime
    leap: Leap
    kept: str
    stores: Sequence[str]

    def told(self) -> Iterator[str]:
        """Say what happened, what is lost, and what to do next."""
        yield f"restored the backup of {self.begun_at:%Y-%m-%d %H:%M:%S} UTC; the ledger has a new id"
        yield (
            f"lost: rows that were accepted after the backup was begun and are not in it, in batches up to"
            f" {self.leap.last}; the next batch is {self.leap.last + 1}. `logpipe send --resume FILE` sends those rows"
            " of a file again that are not in the backup"
        )
        if self.kept:
            yield f"the former database is kept as {self.kept}: drop it once nothing of it is needed"
        yield f"next: start the ingest API; then run `logpipe replay --store STORE` for {' and '.join(self.stores)}"


def restore(url: str, kafka_url: str, backup: Backup, stores: Sequence[str]) -> Restored:
    """Restore `backup` into the database of `url`. `stores`: the names of those that are in use.

    Blocks. Raises StoreDown, Conflict while a process of the pipeline runs, and NeedsOperator.
    """
    name = database_of(url)
    draft, former = f"{name}_restoring", f"{name}_before_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    backup.check()
    try:
        around = fitting.look_around(kafka_url, stores)
    except StoreDown as error:
        raise fitting.unreachable(error) from error
    with closing(connect(in_database(url, "postgres"), closed_when_idle=False)) as server:
        _refuse_sessions(server, name)
        program = programs.find("pg_restore", major_version(server))
        with translated():
            server.execute(SQL("DROP DATABASE IF EXISTS {}").format(Identifier(draft)))
            server.execute(SQL("CREATE DATABASE {}").format(Identifier(draft)))
        draft_url = in_database(url, draft)
        options = ("--no-owner", "--no-privileges", "--exit-on-error", f"--jobs={_JOBS}")
        programs.run(program, draft_url, *options, f"--dbname={draft}", str(backup.dump))
        migrate(draft_url)
        with closing(connect(draft_url, closed_when_idle=False)) as restored:
            if str(ledger_id(restored)) != backup.description.ledger:
                raise NeedsOperator(f"{backup.dump} is not the ledger {backup.description.ledger} of its description")
            leap = fitting.make_fit(restored, stores)
            fitting.rebase(restored, around)
        kept = former if _swap(server, url, name, draft, former) else ""
    return Restored(backup.description.begun_at, leap, kept, stores)


def _refuse_sessions(server: Connection, name: str) -> None:
    """Raise Conflict while a client uses the database. The session of a client that has just ended lasts a moment."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    query = """SELECT DISTINCT coalesce(nullif(application_name, ''), usename, '?') FROM pg_stat_activity
               WHERE datname = %s AND backend_type = 'client backend'"""
    while True:
        with translated():
            found = [who for (who,) in server.execute(query, (name,)).fetchall()]
        if not found:
            return
        if time.monotonic() > deadline:
            raise Conflict(f"database {name} is in use by {', '.join(found)}: stop every process of the pipeline first")
        time.sleep(0.1)


def _swap(server: Connection, url: str, name: str, draft: str, former: str) -> bool:
    """Give the restored database its name, and return whether the former database of the name is kept: it has rows."""
    _refuse_sessions(server, name)
    exists = server.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is not None
    has_rows = exists and _has_rows(in_database(url, name))
    _refuse_sessions(server, name)
    rename = SQL("ALTER DATABASE {} RENAME TO {}")
    try:
        with server.transaction():
            if exists:
                server.execute(rename.format(Identifier(name), Identifier(former)))
            server.execute(rename.format(Identifier(draft), Identifier(name)))
    except psycopg.errors.ObjectInUse as error:
        raise Conflict(f"database {name} is in use: stop every process of the pipeline first") from error
    except psycopg.Error as error:
        raise StoreDown("postgres", str(error).strip()) from error
    if exists and not has_rows:
        with translated():
            server.execute(SQL("DROP DATABASE {}").format(Identifier(former)))
    return has_rows


def _has_rows(url: str) -> bool:
    """Return whether the database has a batch, or tables of others."""
    with connect(url, closed_when_idle=False) as connection:
        has_batches = has_accepted(connection)
        if has_batches is not None:
            return has_batches
        with translated():
            query = "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'public')"
            return connection.execute(query).fetchone() == (True,)
