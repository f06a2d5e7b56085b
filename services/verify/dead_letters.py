"""Rows that were dead-lettered instead of stored, by store, dataset and batch."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.core.dataset import Dataset
from services.core.ports import KeepsRejects, PartitionReader, StoreReader
from services.ledger import dead_letter_index
from services.postgres.pool import Pool

OpenStream = Callable[[], PartitionReader]
Reject = tuple[int, int | None, int]
"""(batch, id of the row, 1), or (batch, None, rows) of which no id could be read."""


@dataclass(frozen=True, slots=True)
class DeadLetteredRows:
    """The dead-lettered rows of one batch: those with these ids, and a number of rows whose ids could not be read."""

    ids: frozenset[int] = frozenset()
    unnamed: int = 0

    @property
    def rows(self) -> int:
        return len(self.ids) + self.unnamed

    def __or__(self, other: "DeadLetteredRows") -> "DeadLetteredRows":
        """The rows that were dead-lettered in either of two places, or in both."""
        return DeadLetteredRows(self.ids | other.ids, max(self.unnamed, other.unnamed))


class DeadLetterLookup:
    """Looks up the dead-lettered rows of a store and dataset. The first call that needs the index updates it, once."""

    def __init__(self, ledger: Pool, open_topic: OpenStream) -> None:
        self._ledger = ledger
        self._open_topic = open_topic
        self._is_current = False

    def of(
        self, reader: StoreReader, dataset: Dataset, batches: Sequence[int] | None = None
    ) -> Mapping[int, DeadLetteredRows]:
        """Batch -> its dead-lettered rows, of all batches or of these only. Blocks. Raises StoreDown."""
        if reader.progress == "ledger":
            return {}
        with self._ledger.connection() as connection:
            if not self._is_current:
                dead_letter_index.update(connection, self._open_topic())
                self._is_current = True
            indexed = by_batch(dead_letter_index.dead_lettered(connection, reader.name, dataset.name, batches))
        if not isinstance(reader, KeepsRejects):
            return indexed
        # Spark keeps rejects, and the embedded writer sends dead letters. A rebuilt table may have both for one row.
        rejects = by_batch(reader.rejected(dataset))
        wanted = indexed.keys() | rejects.keys() if batches is None else set(batches)
        both = {
            batch: indexed.get(batch, DeadLetteredRows()) | rejects.get(batch, DeadLetteredRows()) for batch in wanted
        }
        return {batch: dead_lettered for batch, dead_lettered in both.items() if dead_lettered.rows}


def by_batch(rejects: Iterable[Reject]) -> Mapping[int, DeadLetteredRows]:
    """Batch -> its dead-lettered rows. `rejects` are of one store and dataset."""
    ids: defaultdict[int, set[int]] = defaultdict(set)
    unnamed: Counter[int] = Counter()
    for batch_id, row_id, rows in rejects:
        if row_id is None:
            unnamed[batch_id] += rows
        else:
            ids[batch_id].add(row_id)
    return {batch: DeadLetteredRows(frozenset(ids[batch]), unnamed[batch]) for batch in ids.keys() | unnamed.keys()}
