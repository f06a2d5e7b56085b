"""How far each store has come: the highest batch id at or below which every batch is loaded there.

Batch ids are drawn from one sequence by transactions that commit out of order, and some never do. So first it is
settled which ids will never be batches (`Settled`), then the batches are walked in order, against the offsets the store
has confirmed (`Loaded`). Both keep their place between calls and read only what is new.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock

from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.ledger import Batch
from services.core.ports import StoreReader
from services.ledger import reading

_PATIENCE = 10.0  # seconds for another question's look at the same: behind one that hangs nobody must queue up
_IDS = 10_000  # batch ids read at once
_FIRST_PAGE, _LAST_PAGE = 32, 8192  # batches read at once: a few when little is new, many when catching up


@contextmanager
def _held(lock: Lock, store: str) -> Iterator[None]:
    if not lock.acquire(timeout=_PATIENCE):
        raise StoreDown(store, f"it has not said for {_PATIENCE:.0f} s how far it is")
    try:
        yield
    finally:
        lock.release()


class Settled:
    """Every batch id up to `end` is either committed, or dead: it was drawn by a transaction that did not commit.

    A missing id was drawn before a higher one that is there, by a transaction that had an id of its own by then. So a
    transaction id drawn after the higher one was seen is above it, and once all transactions below that one have
    ended, what is missing is dead. (`pg_snapshot_xmax` would be too low a bound: it is one past the highest
    transaction *ended*, and the missing one may be running beyond it.)
    """

    def __init__(self) -> None:
        self.end = 0
        self._seen = 0
        self._gap: tuple[int, int] | None = None  # highest id seen, and a transaction id drawn after that

    def observe(self, ids: Sequence[int], oldest_running: int) -> bool:
        """Take in a snapshot of the ids above `end`; whether `bound` should follow. See `reading.Snapshot`."""
        if self._gap and oldest_running >= self._gap[1]:
            self.end = max(self.end, self._gap[0])
        for batch_id in ids:
            if batch_id == self.end + 1:
                self.end = batch_id
        self._seen = max(self.end, ids[-1] if ids else 0)
        if self._gap and self.end >= self._gap[0]:
            self._gap = None
        return self._seen > self.end and self._gap is None

    def bound(self, transaction_id: int) -> None:
        """Give a transaction id drawn after the last `observe`."""
        self._gap = (self._seen, transaction_id)


class Loaded:
    """Every batch of one dataset up to `end` was taken by one store's stream, and up to `mark` is loaded there."""

    def __init__(self) -> None:
        self.end = 0
        self.replayed: int | None = None  # a replay under way vouches for no more than this
        self._offsets: Mapping[int, int] = {}

    @property
    def mark(self) -> int:
        return self.end if self.replayed is None else min(self.end, self.replayed)

    def confirm(self, offsets: Mapping[int, int]) -> None:
        """Partition -> first offset not loaded. A store that fell back was rebuilt: it is walked from the start."""
        if any(offsets.get(partition, 0) < before for partition, before in self._offsets.items()):
            self.end = 0
        self._offsets = offsets

    def walk(self, batches: Sequence[Batch]) -> bool:
        """Take in the next batches above `end`, in order; False when one of them is not loaded yet."""
        for batch in batches:
            if batch.parts is None or any(p.offset >= self._offsets.get(p.partition, 0) for p in batch.parts):
                return False
            self.end = batch.batch_id
        return True


class Watermarks:
    """The watermarks of all stores, kept between questions. Thread-safe."""

    def __init__(self, ledger: reading.Ledger) -> None:
        self._ledger = ledger
        self._settled = Settled()
        self._settling = Lock()
        self._loaded: dict[tuple[str, str], tuple[Loaded, Lock]] = {}

    def settled(self) -> int:
        """The highest id at or below which no batch can appear any more. Raises StoreDown('postgres')."""
        with _held(self._settling, "postgres"), self._ledger.connection() as connection:
            looked_again = False
            while True:
                before = self._settled.end
                ids, oldest_running = reading.snapshot(connection, before, _IDS)
                gap_is_new = self._settled.observe(ids, oldest_running)
                if gap_is_new:
                    self._settled.bound(reading.new_transaction_id(connection))
                if len(ids) == _IDS and self._settled.end > before:
                    looked_again = False  # there is more to read
                elif gap_is_new and not looked_again:
                    looked_again = True  # unless a writer is under way, what is missing can be seen to be dead now
                else:
                    return self._settled.end

    def of(self, reader: StoreReader, dataset: Dataset) -> int:
        """The watermark of one store now. Raises StoreDown, of the ledger or the store."""
        settled = self.settled()
        if reader.progress == "ledger":
            return settled
        loaded, lock = self._loaded.setdefault((reader.name, dataset.name), (Loaded(), Lock()))
        with _held(lock, reader.name):
            own = reader.position(dataset).offsets if reader.progress == "own" else None
            with self._ledger.connection() as connection:
                loaded.confirm(reading.sink_offsets(connection, reader.name, dataset.name) if own is None else own)
                # After the offsets: a replay moves them only together with its own beginning.
                loaded.replayed = reading.replayed(connection, reader.name, dataset.name)
                self._catch_up(connection, loaded, dataset, settled)
            return loaded.mark

    def last_known(self, reader: StoreReader, dataset: Dataset) -> int:
        """The watermark as last asked for: still true, if the ledger cannot be reached."""
        if reader.progress == "ledger":
            return self._settled.end
        loaded = self._loaded.get((reader.name, dataset.name))
        return loaded[0].mark if loaded else 0

    def lag(self, dataset: Dataset, watermark: int) -> int:
        """How many batches of `dataset` were accepted above `watermark`."""
        with self._ledger.connection() as connection:
            last = reading.last_batch(connection)
            return reading.count(connection, dataset.name, watermark, last).batches

    @staticmethod
    def _catch_up(connection: reading.Connection, loaded: Loaded, dataset: Dataset, settled: int) -> None:
        page = _FIRST_PAGE
        while True:
            batches = reading.batches(connection, dataset.name, loaded.end, settled, page)
            if not loaded.walk(batches):
                return
            if len(batches) < page:
                loaded.end = max(loaded.end, settled)
                return
            page = min(page * 2, _LAST_PAGE)
