"""What was put aside instead of stored, by store, dataset and batch."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import msgspec

from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.ports import PartitionReader, StoreReader

TOPIC = "dead-letter"
_IDLE_POLLS = 10  # seconds without a message before the topic's end counts as unreachable

OpenStream = Callable[[], PartitionReader]


class Record(msgspec.Struct, frozen=True):
    """A message of the topic, as far as it is counted here: one row, or with no `line` the `rows` of one message."""

    store: str
    dataset: str
    topic: str
    partition: int
    offset: int
    line: int | None = None
    batch_id: int | None = None
    id: int | None = None
    rows: int = 1


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
        if isinstance(reader, KeepsRejects):
            return reader.rejected(dataset)
        if self._found is None:
            self._found = read(self._open_stream)
        return self._found.get((reader.name, dataset.name), {})


def read(open_stream: OpenStream) -> Mapping[tuple[str, str], Mapping[int, int]]:
    """(store, dataset) -> batch -> rows; a row put aside again after a crash counts once. Raises StoreDown."""
    stream = open_stream()
    decoder = msgspec.json.Decoder(Record)
    seen: set[Record] = set()
    try:
        bounds = stream.bounds()
        stream.assign({partition: first for partition, (first, _) in bounds.items()})
        idle = 0
        while any(stream.reached().get(partition, 0) < end for partition, (_, end) in bounds.items()):
            messages = stream.poll(1.0)
            idle = 0 if messages else idle + 1
            if idle == _IDLE_POLLS:
                raise StoreDown("kafka", f"topic {TOPIC} could not be read to its end")
            seen.update(decoder.decode(message.value) for message in messages)
    finally:
        stream.close()
    found: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for record in seen:
        if record.batch_id is not None:
            found[record.store, record.dataset][record.batch_id] += record.rows
    return found
