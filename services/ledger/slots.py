"""Slots: each batch belongs to one slot, and one owner at a time publishes a slot's batches.

Ownership is a lease. A process whose lease has lapsed may still be publishing, because it was stopped or cut off. Four
things keep such a process from doing harm: the adopter ends the process's database sessions, batches are read for
publication under the epoch of a lease, every change of a slot is made under it, too (`hold`), and Kafka fences the
process's producer by the slot's transactional id.
"""

from dataclasses import dataclass
from uuid import UUID

from psycopg.sql import SQL, Composed

from services.core.errors import Conflict, Fenced, NotFound
from services.postgres.connection import Connection, Cursor, translated

LEASE_SECONDS = 10
RENEW_SECONDS = 2
_ONE_AT_A_TIME = "LOCK TABLE slots IN SHARE ROW EXCLUSIVE MODE"
_SESSION = "logpipe-ingest-"

_LEASE = SQL("make_interval(secs => {})").format(LEASE_SECONDS)
# A renewal in the future was written before a crash by a server whose clock was ahead: it was not renewed since.
_LAPSED = SQL("(renewed_at NOT BETWEEN clock_timestamp() - {lease} AND clock_timestamp() + {lease})").format(
    lease=_LEASE
)
_UNFINISHED = SQL("EXISTS (SELECT FROM batches WHERE batches.slot = slots.slot AND published_at IS NULL)")


@dataclass(frozen=True, slots=True)
class Lease:
    """`epoch` is raised whenever the slot is leased, so that two leases of one slot never share an epoch."""

    slot: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot as `logpipe slots` shows it. `stuck` is why the slot cannot be published, '' if it can."""

    slot: int
    is_alive: bool
    unpublished: int
    stuck: str


def session_name(owner: UUID) -> str:
    """Return the application_name of all database sessions of the process `owner`, which accepts rows."""
    return f"{_SESSION}{owner}"


def acquire(connection: Connection, owner: UUID) -> Lease:
    """Lease the lowest free slot without unpublished batches, or a new slot. Raises StoreDown.

    A slot with unpublished batches is left to `adopt_orphan`, so that new batches never wait behind a stuck slot.
    """
    free = SQL("{} AND NOT {}").format(_LAPSED, _UNFINISHED)
    lease = _lease_lowest(connection, owner, free)
    return _create(connection, owner) if lease is None else lease


def adopt_orphan(connection: Connection, owner: UUID) -> Lease | None:
    """Lease one slot that has unpublished batches and no living owner; None when there is none. Raises StoreDown."""
    return _lease_lowest(connection, owner, SQL("{} AND {}").format(_LAPSED, _UNFINISHED))


def take_over(connection: Connection, owner: UUID, slot: int) -> Lease:
    """Lease this slot for an operator. Raises NotFound, StoreDown, or Conflict while a living owner publishes it."""
    resolvable = SQL("slot = {} AND (stuck <> '' OR {})").format(slot, _LAPSED)
    if lease := _lease_lowest(connection, owner, resolvable):
        return lease
    if all(slot != other.slot for other in all_slots(connection)):
        raise NotFound(f"there is no slot {slot}: `logpipe slots` lists them")
    raise Conflict(f"slot {slot} has a living owner that publishes it: nothing is to be resolved")


def renew(connection: Connection, owner: UUID) -> set[Lease]:
    """Renew all leases of `owner`, and return those that `owner` still holds. Raises StoreDown."""
    with translated():
        rows = connection.execute(
            "UPDATE slots SET renewed_at = clock_timestamp() WHERE owner = %s RETURNING slot, epoch", (owner,)
        )
        return {Lease(*row) for row in rows}


def release(connection: Connection, lease: Lease) -> None:
    """Let others have the slot at once. Raises StoreDown."""
    with translated():
        connection.execute(
            "UPDATE slots SET owner = none, reader = none, renewed_at = '-infinity', stuck = ''"
            " FROM (SELECT gen_random_uuid() AS none) AS fresh WHERE slot = %s AND epoch = %s",
            (lease.slot, lease.epoch),
        )


def mark_stuck(connection: Connection, lease: Lease, reason: str) -> None:
    """Record why the slot cannot be published, for `logpipe slots`. Raises StoreDown."""
    with translated():
        connection.execute(
            "UPDATE slots SET stuck = %(reason)s WHERE slot = %(slot)s AND epoch = %(epoch)s AND stuck <> %(reason)s",
            {"reason": reason, "slot": lease.slot, "epoch": lease.epoch},
        )


def all_slots(connection: Connection) -> list[Slot]:
    """Return all slots, in order. Raises StoreDown."""
    query = SQL("""SELECT slot, NOT {}, coalesce(waiting, 0), stuck
                   FROM slots LEFT JOIN (SELECT slot, count(*) AS waiting FROM batches WHERE published_at IS NULL
                                         GROUP BY slot) AS unpublished USING (slot)
                   ORDER BY slot""").format(_LAPSED)
    with translated():
        return [Slot(*row) for row in connection.execute(query)]


def hold(cursor: Cursor, lease: Lease) -> None:
    """Keep the slot's lease from changing until the transaction ends. Raises Fenced when it has changed already."""
    found = cursor.execute(
        "SELECT FROM slots WHERE slot = %s AND epoch = %s FOR SHARE", (lease.slot, lease.epoch)
    ).fetchone()
    if found is None:
        raise Fenced(f"slot {lease.slot} was leased by another process")


def end_lapsed_sessions(connection: Connection) -> int:
    """End the database sessions of processes whose lease has lapsed, and return the number of sessions.

    A stopped process may hold a transaction open in the middle of a COPY, where no timeout of PostgreSQL applies.
    A process may also have lost its slot to another process before it was stopped: its sessions are ended when their
    transaction is older than a lease. One statement reads a session's owner and process id and ends the session,
    so that the process id cannot have passed on to another session meanwhile. Raises StoreDown.
    """
    query = SQL("""
        SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
        FROM pg_stat_activity
        WHERE usename = current_user AND datname = current_database()
          AND starts_with(application_name, {prefix})
          AND application_name NOT IN (SELECT {prefix} || owner FROM slots WHERE NOT {lapsed})
          AND (application_name IN (SELECT {prefix} || owner FROM slots) OR xact_start < clock_timestamp() - {lease})
    """).format(prefix=_SESSION, lapsed=_LAPSED, lease=_LEASE)
    with translated():
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _lease_lowest(connection: Connection, owner: UUID, condition: Composed) -> Lease | None:
    """Lease the lowest slot that fulfils `condition`; None if there is none.

    The sessions of all lapsed owners are ended before. After the lease, the slot's `first_batch` is recorded if it is
    known: the lowest batch that the former owner cannot have published.
    """
    query = SQL(
        "SELECT slot AS free, owner IS NOT DISTINCT FROM reader AS by_epoch FROM slots WHERE {} ORDER BY slot LIMIT 1"
    ).format(condition)
    change = SQL("""UPDATE slots SET owner = {owner}, reader = {owner}, renewed_at = clock_timestamp(),
                                   epoch = epoch + 1, stuck = '', first_batch = NULL
                  FROM ({query}) AS lowest WHERE slot = free
                  RETURNING slot, epoch, by_epoch""").format(owner=owner, query=query)
    with translated():
        if connection.execute(query).fetchone() is None:
            return None
        end_lapsed_sessions(connection)
        with connection.transaction():
            connection.execute(_ONE_AT_A_TIME)
            row = connection.execute(change).fetchone()
        if row is None:
            return None
        lease, by_epoch = Lease(row[0], row[1]), row[2]
        # `reader` is the last owner that read the slot's batches under its epoch. Owners of an older release did not
        # set it. Such an owner may still publish any batch of the slot, so `first_batch` stays unknown (NULL).
        if by_epoch:
            # The former owner can read no batch of which the id was drawn after the epoch was raised. The epoch was
            # raised by the commit, so the sequence is read after it.
            connection.execute(
                "UPDATE slots SET first_batch = (SELECT last_value + 1 FROM batch_ids) WHERE slot = %s AND epoch = %s",
                (lease.slot, lease.epoch),
            )
    return lease


def _create(connection: Connection, owner: UUID) -> Lease:
    with translated(), connection.transaction():
        connection.execute(_ONE_AT_A_TIME)
        row = connection.execute(
            "INSERT INTO slots (slot, owner, reader, renewed_at, epoch)"
            " SELECT coalesce(max(slot) + 1, 0), %s, %s, clock_timestamp(), 1 FROM slots RETURNING slot, epoch",
            (owner, owner),
        ).fetchone()
    assert row is not None
    return Lease(*row)
