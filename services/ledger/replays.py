"""The progress of running replays, which fill a store from PostgreSQL: one at a time for each store and dataset."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

from services.core.dataset import Dataset
from services.core.errors import Conflict, Fenced, Invalid
from services.ledger import schema, sink_repair
from services.postgres.connection import Connection, connect, translated


@dataclass(frozen=True, slots=True)
class Replay:
    """Batches below `next` are written, and `last` is the last to write; next..range_last are being written."""

    id: UUID
    next: int
    last: int
    range_last: int | None


class ReplayProgress:
    """One row of table replays, and the lock on it, which ends with the connection. Methods raise StoreDown."""

    def __init__(self, postgres_url: str, store: str, dataset: Dataset) -> None:
        """Connect. Raises Conflict while another replay of this store and dataset runs."""
        self._dataset = dataset
        self._key = {"store": store, "dataset": dataset.name}
        self._connection = connect(postgres_url, closed_when_idle=False)  # its lock must last
        try:
            schema.require(self._connection)
            with translated():
                lock = "SELECT pg_try_advisory_lock(hashtextextended('replay:' || %(store)s || ':' || %(dataset)s, 0))"
                held = self._connection.execute(lock, self._key).fetchone()
            if held != (True,):
                raise Conflict(
                    f"another replay of {dataset.name} into {store} runs: wait for its end, or stop it first"
                )
        except BaseException:
            self.close()
            raise

    def begin(self, topic_id: str, table_id: str, bounds: Mapping[int, tuple[int, int]], first: int | None) -> Replay:
        """Continue the replay; begin at batch `first` if it is given, at the first batch if no replay was interrupted.

        The replay ends with the last batch that the ledger has now. `bounds`: see `sink_repair.skip`; empty if every
        position lies within the topic. One transaction begins the replay and binds the positions to the topic and the
        table; from then on the replay caps the store's watermark. If the topic or the table was created again, the
        replay starts over. Raises Invalid if `first` is given in that case.
        """
        store, dataset = self._key["store"], self._key["dataset"]
        with self._transaction() as connection:
            former = sink_repair.former_topic(connection, store, dataset, topic_id)
            if former is not None:
                sink_repair.bind_topic(connection, store, self._dataset, former, topic_id)
            other_table = sink_repair.bind_table(connection, store, dataset, table_id)
            if first is not None and (former is not None or other_table):
                raise Invalid(f"the topic or the table of {dataset} was created again: leave --from-batch out")
            if bounds:
                sink_repair.skip(connection, store, dataset, topic_id, table_id, bounds)
            starts_over = first is not None or former is not None or other_table
            values = {**self._key, "id": uuid4(), "first": first or 0, "table_id": table_id, "starts_over": starts_over}
            connection.execute(
                "DELETE FROM replays WHERE store = %(store)s AND dataset = %(dataset)s"
                " AND (%(starts_over)s OR table_id NOT IN ('', %(table_id)s))",
                values,
            )
            # Read after the bounds: a message below the end of the topic belongs to a batch that was accepted before.
            row = connection.execute(
                "INSERT INTO replays (store, dataset, id, next_batch, last_batch, table_id)"
                " SELECT %(store)s, %(dataset)s, %(id)s, %(first)s, coalesce(max(batch_id), 0), %(table_id)s"
                " FROM batches"
                " ON CONFLICT (store, dataset) DO UPDATE"
                " SET last_batch = excluded.last_batch, table_id = excluded.table_id, updated_at = now()"
                " RETURNING id, next_batch, last_batch, range_last",
                values,
            ).fetchone()
        assert row is not None
        return Replay(*row)

    def intend(self, replay: Replay, range_last: int) -> Replay:
        """Note the range that is about to be written. Raises Fenced if another process runs it now."""
        return self._put(replay, replace(replay, range_last=range_last))

    def advance(self, replay: Replay, next_batch: int) -> Replay:
        """Note that all batches below `next_batch` are written. Raises Fenced if another process runs it now."""
        return self._put(replay, replace(replay, next=next_batch, range_last=None))

    def finish(self, replay: Replay) -> None:
        """End the replay, which then no longer caps the watermark. Raises Fenced if another process runs it now."""
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
            raise Fenced(
                f"another process runs the replay of {'/'.join(self._key.values())} now, from batch {replay.next}"
            )

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with translated(), self._connection.transaction():
            yield self._connection
