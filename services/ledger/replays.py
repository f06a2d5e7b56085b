"""Replays under way: how far each has come in filling a store from PostgreSQL. One at a time a store and dataset."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import psycopg

from services.core.errors import Conflict, Fenced
from services.ledger import schema, sink_progress
from services.postgres.connection import connect, translated


@dataclass(frozen=True, slots=True)
class Replay:
    """Batches below `next` are done with, `last` is the last one; `range_last`: next..range_last is being written."""

    id: UUID
    next: int
    last: int
    range_last: int | None


class ReplayProgress:
    """One row of table replays, and the lock on it, which ends with the connection. Methods raise StoreDown."""

    def __init__(self, postgres_url: str, store: str, dataset: str) -> None:
        """Raises Conflict when another replay of the same runs."""
        self._key = {"store": store, "dataset": dataset}
        self._connection = connect(postgres_url, closed_when_idle=False)  # its lock must last
        try:
            schema.prepare(self._connection)
            with translated():
                lock = "SELECT pg_try_advisory_lock(hashtextextended('replay:' || %(store)s || ':' || %(dataset)s, 0))"
                held = self._connection.execute(lock, self._key).fetchone()
            if held != (True,):
                raise Conflict(f"another replay of {dataset} into {store} runs: wait for its end, or stop it first")
        except BaseException:
            self.close()
            raise

    def begin(self, topic_id: str, bounds: Mapping[int, tuple[int, int]], first: int | None) -> Replay:
        """Go on, or begin at batch `first` when it is given or nothing is under way; up to the last batch of now.

        `bounds`: see `sink_progress.skip`, whose positions are set in the same transaction. From then on the store's
        watermark is held back. Raises NeedsOperator when the topic was replaced.
        """
        with self._transaction() as connection:
            sink_progress.skip(connection, self._key["store"], self._key["dataset"], topic_id, bounds)
            values = {**self._key, "id": uuid4(), "first": first or 0}
            if first is not None:
                connection.execute("DELETE FROM replays WHERE store = %(store)s AND dataset = %(dataset)s", values)
            # Read after the bounds: what lies in the topic below its end was accepted before.
            row = connection.execute(
                "INSERT INTO replays (store, dataset, id, next_batch, last_batch)"
                " SELECT %(store)s, %(dataset)s, %(id)s, %(first)s, coalesce(max(batch_id), 0) FROM batches"
                " ON CONFLICT (store, dataset) DO UPDATE SET last_batch = excluded.last_batch, updated_at = now()"
                " RETURNING id, next_batch, last_batch, range_last",
                values,
            ).fetchone()
        assert row is not None
        return Replay(*row)

    def intend(self, replay: Replay, range_last: int) -> Replay:
        """Write down what is about to be written. Raises Fenced when somebody else has gone on."""
        return self._put(replay, replace(replay, range_last=range_last))

    def advance(self, replay: Replay, next_batch: int) -> Replay:
        """All below `next_batch` is done with. Raises Fenced when somebody else has gone on."""
        return self._put(replay, replace(replay, next=next_batch, range_last=None))

    def finish(self, replay: Replay) -> None:
        """The watermark is held back no longer. Raises Fenced when somebody else has gone on."""
        with self._transaction() as connection:
            done = connection.execute(
                "DELETE FROM replays WHERE store = %(store)s AND dataset = %(dataset)s AND id = %(id)s"
                " AND next_batch = %(next)s",
                {**self._key, "id": replay.id, "next": replay.next},
            )
            self._refuse_another(replay, done.rowcount)

    def close(self) -> None:
        self._connection.close()

    def _put(self, before: Replay, after: Replay) -> Replay:
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE replays SET next_batch = %(after)s, range_last = %(range_last)s, updated_at = now()"
                " WHERE store = %(store)s AND dataset = %(dataset)s AND id = %(id)s AND next_batch = %(next)s",
                {
                    **self._key,
                    "id": before.id,
                    "next": before.next,
                    "after": after.next,
                    "range_last": after.range_last,
                },
            )
            self._refuse_another(before, done.rowcount)
        return after

    def _refuse_another(self, replay: Replay, changed: int) -> None:
        if changed == 0:
            raise Fenced(f"another replay of {'/'.join(self._key.values())} has gone on from batch {replay.next}")

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        with translated(), self._connection.transaction():
            yield self._connection
