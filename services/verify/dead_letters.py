"""What was put aside instead of stored, by store, dataset and batch."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from services.core.dataset import Dataset
from services.core.ports import PartitionReader, StoreReader
from services.streams import dead_letters

OpenStream = Callable[[], PartitionReader]
Reject = tuple[int, int | None, int]
"""(batch, id of the row, 1), or (batch, None, rows) of which no id could be read."""


@dataclass(frozen=True, slots=True)
class Aside:
    """Of one batch: the rows with these ids, and some more that could not be told apart."""

    ids: frozenset[int] = frozenset()
    unnamed: int = 0

    @property
    def rows(self) -> int:
        return len(self.ids) + self.unnamed

    def __or__(self, other: "Aside") -> "Aside":
        """What has been put aside in either of two places, or in both."""
        return Aside(self.ids | other.ids, max(self.unnamed, other.unnamed))


@runtime_checkable
class KeepsRejects(Protocol):
    """A store that keeps its own rejects, beside its tables."""

    def rejected(self, dataset: Dataset) -> Iterator[Reject]:
        """Each once. Raises StoreDown."""


class DeadLetters:
    """The topic is read once, when the first store asks that needs it."""

    def __init__(self, open_stream: OpenStream) -> None:
        self._open_stream = open_stream
        self._found: Mapping[tuple[str, str], Mapping[int, Aside]] | None = None

    def of(self, reader: StoreReader, dataset: Dataset) -> Mapping[int, Aside]:
        """Batch -> rows. Raises StoreDown."""
        if reader.progress == "ledger":
            return {}
        if self._found is None:
            self._found = read(self._open_stream)
        letters = self._found.get((reader.name, dataset.name), {})
        if not isinstance(reader, KeepsRejects):
            return letters
        # Spark keeps rejects, the embedded writer sends letters; of a table that was rebuilt a row has left both.
        rejects = _by_batch(reader.rejected(dataset))
        batches = letters.keys() | rejects.keys()
        return {batch: letters.get(batch, Aside()) | rejects.get(batch, Aside()) for batch in batches}


def read(open_stream: OpenStream) -> Mapping[tuple[str, str], Mapping[int, Aside]]:
    """(store, dataset) -> batch -> rows; a row put aside again after a crash counts once. Raises StoreDown."""
    found: defaultdict[tuple[str, str], list[Reject]] = defaultdict(list)
    for record in dead_letters.read(open_stream):
        if record.batch_id is not None:
            found[record.store, record.dataset].append((record.batch_id, record.id, record.rows))
    return {of: _by_batch(rejects) for of, rejects in found.items()}


def _by_batch(rejects: Iterable[Reject]) -> Mapping[int, Aside]:
    ids: defaultdict[int, set[int]] = defaultdict(set)
    unnamed: Counter[int] = Counter()
    for batch_id, row_id, rows in rejects:
        if row_id is None:
            unnamed[batch_id] += rows
        else:
            ids[batch_id].add(row_id)
    return {batch: Aside(frozenset(ids[batch]), unnamed[batch]) for batch in ids.keys() | unnamed.keys()}
