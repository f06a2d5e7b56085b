"""What was put aside instead of stored, by store, dataset and batch."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from services.core.dataset import Dataset
from services.core.ports import PartitionReader, StoreReader
from services.streams import dead_letters

OpenStream = Callable[[], PartitionReader]


@runtime_checkable
class KeepsRejects(Protocol):
    """A store that keeps its own rejects, beside its tables."""

    def rejected(self, dataset: Dataset) -> Mapping[int, int]:
        """Batch -> distinct rows put aside. Raises StoreDown."""


class DeadLetters:
    """The topic is read once, when the first store asks that needs it."""

    def __init__(self, open_stream: OpenStream) -> None:
        self._open_stream = open_stream
        self._found: Mapping[tuple[str, str], Mapping[int, int]] | None = None

    def of(self, reader: StoreReader, dataset: Dataset) -> Mapping[int, int]:
        """Batch -> rows. Raises StoreDown."""
        if reader.progress == "ledger":
            return {}
        if self._found is None:
            self._found = read(self._open_stream)
        letters = self._found.get((reader.name, dataset.name), {})
        if isinstance(reader, KeepsRejects):
            # Spark keeps rejects, the embedded writer sends letters; of a table that was rebuilt a row has left both.
            return Counter(reader.rejected(dataset)) | Counter(letters)
        return letters


def read(open_stream: OpenStream) -> Mapping[tuple[str, str], Mapping[int, int]]:
    """(store, dataset) -> batch -> rows; a row put aside again after a crash counts once. Raises StoreDown."""
    found: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for record in dead_letters.read(open_stream):
        if record.batch_id is not None:
            found[record.store, record.dataset][record.batch_id] += record.rows
    return found
