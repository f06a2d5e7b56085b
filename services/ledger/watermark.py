"""The watermark of each store: the highest batch id at or below which every batch is loaded there.

First, `settled` finds out which ids will never be batches. Then the first batch is searched that the store has not
loaded, by the position that the store has confirmed. Both continue where the last search ended, in this process or in
another one, so they read only new batches.

A position consists of offsets in one topic, and says which rows are in one table. A batch that was published to another
topic, or a table that was created again, is never measured by it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from uuid import UUID

from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.ledger import StorePosition
from services.core.ports import StoreReader
from services.ledger import floors, reading, saved_watermarks, schema, slots
from services.ledger.identity import ledger_id
from services.ledger.reading import Lag, LoadedBatches, OpenTransaction, TopicNumbers
from services.ledger.saved_watermarks import SavedWatermark
from services.ledger.settled import Blockers, Settled, update_settled
from services.postgres.connection import Connection
from services.postgres.pool import Pool

_PATIENCE = 10.0  # seconds that a query waits while another one computes the same watermark
_WALK_SECONDS = 1.0  # after which a watermark that is still rising is returned as it is
_PAGE = 100_000  # batch ids looked through at once
_SAVE_SECONDS = 10.0
_SAVE_BATCHES = 10_000  # a watermark that has risen by this many batches is saved at once
_TABLE_SECONDS = 1.0  # for this time the identity of a store's table is not read again, which takes milliseconds
_MOST_LAG = 100_000  # batches that the gauge of the lag counts at most: a store may be unreachable for a day


@dataclass(slots=True)
class _KnownWatermark:
    """One store's watermark of one dataset, as this process computed it last. Times are monotonic.

    `table_id`: the store's table when its id was read last ('' if there was none). For a sink, that was at
    `table_seen_at`. `returned`: the watermark that was returned last. A running replay keeps `returned` below `saved`.
    """

    returned: int = 0
    saved: SavedWatermark = field(default_factory=lambda: SavedWatermark(epoch=-1))
    saved_at: float = float("-inf")
    table_id: str = ""
    table_seen_at: float = float("-inf")
    lock: Lock = field(default_factory=Lock)


class Watermarks:
    """The watermarks of all stores, kept between queries. Thread-safe; methods raise StoreDown."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ledger_id: UUID | None = None
        self._settled: Settled | None = None
        self._blockers = Blockers()
        self._settling = Lock()
        self._settled_saved_at = float("-inf")
        self._watermarks: dict[tuple[str, str], _KnownWatermark] = {}
        self._topics: dict[tuple[str, str], TopicNumbers] = {}

    def settled(self) -> int:
        """Return the highest id at or below which no batch can appear any more. Raises StoreDown('postgres').

        Also ends the sessions of processes with a lapsed lease that keep the id from rising. Saves the id now and then.
        """
        with _locked(self._settling, "postgres"), self._pool.connection() as connection:
            self._begin(connection)
            assert self._settled is not None
            self._blockers = update_settled(connection, self._settled, self._blockers)
            if self.blocking_transactions(slots.LEASE_SECONDS):
                # The process that adopts a slot ends the sessions of the lapsed owner. Here none may be alive.
                slots.end_lapsed_sessions(connection)
            if time.monotonic() - self._settled_saved_at > _SAVE_SECONDS:
                saved_watermarks.raise_to(connection, SavedWatermark(batch_id=self._settled.end))
                self._settled_saved_at = time.monotonic()
            return self._settled.end

    def _begin(self, connection: Connection) -> None:
        """Start from what the ledger has saved, again when the ledger was created again: its ids begin at 1 then."""
        if self._settled is None:
            schema.require(connection)
        found = ledger_id(connection)
        if found != self._ledger_id:
            self._ledger_id, self._blockers = found, Blockers()
            self._settled = Settled(saved_watermarks.read(connection).batch_id)
            self._watermarks.clear()
            self._topics.clear()

    def blocking_transactions(self, seconds: float) -> list[OpenTransaction]:
        """Return the transactions that have kept `settled` from rising for more than `seconds`."""
        since = self._blockers.since
        return list(self._blockers.transactions) if since is not None and time.monotonic() - since > seconds else []

    def of(self, reader: StoreReader, dataset: Dataset) -> int:
        """Return the watermark of one store now.

        Raises StoreDown of the ledger or the store, also if the store's table was created again and not filled since.
        """
        settled = self.settled()
        if reader.progress == "ledger":
            return settled
        known = self._watermarks.setdefault((reader.name, dataset.name), _KnownWatermark())
        with _locked(known.lock, reader.name):
            # The order of reading matters. The position must not be older than the saved watermark, or the store would
            # seem to have fallen back; the replay must not be older than the position, which it moves when it begins.
            if reader.progress == "own":
                with self._pool.connection() as connection:
                    _resume(connection, known, reader.name, dataset.name)
                position = reader.position(dataset)
                known.table_id = position.table_id
                with self._pool.connection() as connection:
                    return self._advance(connection, known, reader, dataset, position, settled)
            table_id, seen_at = known.table_id, known.table_seen_at
            if time.monotonic() - seen_at > _TABLE_SECONDS:
                table_id, seen_at = reader.table_id(dataset), time.monotonic()
            with self._pool.connection() as connection:
                _resume(connection, known, reader.name, dataset.name)
                position = reading.sink_position(connection, reader.name, dataset.name)
                _refuse_another_table(reader.name, dataset.name, table_id, position.table_id)
                known.table_id, known.table_seen_at = table_id, seen_at  # `last_known` believes this table
                return self._advance(connection, known, reader, dataset, position, settled)

    def last_known(self, reader: StoreReader, dataset: Dataset) -> int:
        """Return the watermark that was last computed here, which is still valid while the ledger is unreachable.

        0 when it was never computed, or when the store's table was created again since. Raises StoreDown of the store.
        """
        if reader.progress == "ledger":
            return self._settled.end if self._settled else 0
        known = self._watermarks.get((reader.name, dataset.name))
        if known is None:
            return 0
        if reader.progress == "own":
            is_same = _covers(reader.position(dataset), known.saved.position)
        else:
            is_same = reader.table_id(dataset) == known.table_id
        return known.returned if is_same else 0

    def lag(self, dataset: Dataset, watermark: int) -> Lag:
        """Return the batches of `dataset` above `watermark`, counted up to 100,000."""
        with self._pool.connection() as connection:
            return reading.lag(connection, dataset.name, watermark, _MOST_LAG)

    def _advance(
        self,
        connection: Connection,
        known: _KnownWatermark,
        reader: StoreReader,
        dataset: Dataset,
        position: StorePosition,
        settled: int,
    ) -> int:
        """Raise the watermark to the store's position, capped by a running replay."""
        replay = reading.running_replay(connection, reader.name, dataset.name)
        if replay is not None and replay.table_id not in ("", known.table_id):
            raise _other_table(reader.name, dataset.name)
        _lower_if_fallen_back(connection, known, reader.name, dataset.name, position)
        stop = settled if replay is None else min(settled, replay.batch_id)
        loaded = LoadedBatches(
            self._topic_numbers(connection, dataset.topic, position.topic_id),
            position.offsets,
            0 if replay is None else replay.batch_id,
            # An operator moved a store that keeps its own position to the later topic (--resume). Other stores are
            # moved only by a replay.
            skips_lost=reader.progress == "own",
        )
        risen = replace(known.saved, batch_id=_walk(connection, dataset.name, known.saved.batch_id, stop, loaded))
        gained = risen.batch_id - known.saved.batch_id
        if gained > _SAVE_BATCHES or (gained and time.monotonic() - known.saved_at > _SAVE_SECONDS):
            saved_watermarks.raise_to(connection, risen, reader.name, dataset.name)
            known.saved_at = time.monotonic()
        known.saved = risen
        known.returned = min(risen.batch_id, stop) if replay else risen.batch_id
        return known.returned

    def _topic_numbers(self, connection: Connection, topic: str, topic_id: str) -> TopicNumbers:
        """Return the numbers of a topic. They are kept here, because a topic's number never changes."""
        if (topic, topic_id) in self._topics:
            return self._topics[topic, topic_id]
        numbers = reading.topic_numbers(connection, topic, topic_id)
        if numbers.current > 0:
            self._topics[topic, topic_id] = numbers
        return numbers


def _resume(connection: Connection, known: _KnownWatermark, store: str, dataset: str) -> None:
    """Continue from the saved watermark if it is higher than the known one, or was lowered since."""
    saved = saved_watermarks.read(connection, store, dataset)
    if saved.epoch != known.saved.epoch or saved.batch_id > known.saved.batch_id:
        known.saved = replace(saved, batch_id=max(saved.batch_id, floors.floor(connection, dataset) - 1))


def _lower_if_fallen_back(
    connection: Connection, known: _KnownWatermark, store: str, dataset: str, position: StorePosition
) -> None:
    """Lower the watermark when the store's position is below the one at which the watermark was computed."""
    if not _covers(position, known.saved.position):
        floor = floors.floor(connection, dataset)
        saved_watermarks.replace(connection, store, dataset, position, max(0, floor - 1))
        known.saved = saved_watermarks.read(connection, store, dataset)
    known.saved = replace(known.saved, position=position)


def _walk(connection: Connection, dataset: str, after: int, stop: int, loaded: LoadedBatches) -> int:
    """Return the batch up to which all are loaded, or the batch at which the walk was after `_WALK_SECONDS`."""
    deadline = time.monotonic() + _WALK_SECONDS
    while after < stop and time.monotonic() < deadline:
        last = min(stop, reading.next_batch(connection, dataset, after, stop) + _PAGE)
        missing = reading.first_missing(connection, dataset, after, last, loaded)
        if missing is not None:
            return missing - 1
        after = last
    return after


def _covers(now: StorePosition, then: StorePosition) -> bool:
    """Return whether the position `now` covers the position `then`. A position of an earlier release names no table."""
    return (
        then.table_id in ("", now.table_id)
        and then.topic_id in ("", now.topic_id)
        and all(now.offsets.get(partition, 0) >= offset for partition, offset in then.offsets.items())
    )


def _refuse_another_table(store: str, dataset: str, present: str, filled: str) -> None:
    """Raise StoreDown unless the `present` table is the table that was `filled`. An unknown id is ''."""
    if present and filled and present != filled:
        raise _other_table(store, dataset)


def _other_table(store: str, dataset: str) -> StoreDown:
    return StoreDown(
        store,
        f"its table {dataset} was created again and does not hold what was loaded before: run"
        f" `logpipe replay --store {store} --dataset {dataset}`",
    )


@contextmanager
def _locked(lock: Lock, store: str) -> Iterator[None]:
    """Hold `lock`. The lock has a timeout, so that one stuck caller cannot block the others."""
    if not lock.acquire(timeout=_PATIENCE):
        raise StoreDown(store, f"its watermark was not computed within {_PATIENCE:.0f} s")
    try:
        yield
    finally:
        lock.release()
