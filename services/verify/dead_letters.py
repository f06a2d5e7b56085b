"""Rows that were dead-lettered instead of stored, by store, dataset and batch."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.core.dataset import Dataset
from services.core.dead_letter import SOURCE, DeadLettered
from services.core.ports import PartitionReader, RejectsReader, StoreReader
from services.ledger import dead_letter_index
from services.postgres.pool import Pool

OpenTopic = Callable[[], PartitionReader]


@dataclass(frozen=True, slots=True)
class DeadLetteredRows:
    """The dead-lettered rows of one batch: those with these ids, and a number of rows whose ids could not be read."""

    ids: frozenset[int] = frozenset()
    unnamed: int = 0

    @property
    def rows(self) -> int:
        return len(self.ids) + self.unnamed

    def __or__(self, other: "DeadLetteredRows") -> "DeadLetteredRows":
        """Return the rows that were dead-lettered in either of two places, or in both."""
        return DeadLetteredRows(self.ids | other.ids, max(self.unnamed, other.unnamed))


LookUp = Callable[[Sequence[int]], Mapping[int, DeadLetteredRows]]
"""Returns the dead-lettered rows of those of these batches that have any: of one store and dataset, as of now."""


class DeadLetterLookup:
    """Looks up the dead-lettered rows of a store and dataset, including those that were dead-lettered a moment ago."""

    def __init__(self, ledger: Pool, open_topic: OpenTopic) -> None:
        self._ledger = ledger
        self._open_topic = open_topic

    def of(self, reader: StoreReader, dataset: Dataset, batches: Sequence[int]) -> Mapping[int, DeadLetteredRows]:
        """Return batch -> its dead-lettered rows, for those of `batches` that have any. Blocks. Raises StoreDown.

        Each call updates the index first, which reads only the dead letters that are new since the last update.
        """
        if reader.progress == "ledger" or not batches:
            return {}
        with self._ledger.connection() as connection:
            dead_letter_index.update(connection, self._open_topic())
            indexed = by_batch(dead_letter_index.dead_lettered(connection, reader.name, dataset.name, batches))
        if not isinstance(reader, RejectsReader):
            return indexed
        # Spark keeps rejects, and the embedded writer sends dead letters. A rebuilt table may have both for one row.
        rejects = by_batch(reader.rejected(dataset, min(batches), max(batches)))
        nothing = DeadLetteredRows()
        wanted = set(batches) & (indexed.keys() | rejects.keys())
        return {batch: indexed.get(batch, nothing) | rejects.get(batch, nothing) for batch in wanted}

    def of_source(self, topic: str, dataset: str) -> int:
        """Return how many lines of a foreign topic are dead letters. Updates the index first. Raises StoreDown."""
        with self._ledger.connection() as connection:
            dead_letter_index.update(connection, self._open_topic())
            return dead_letter_index.lines_of_topic(connection, SOURCE, dataset, topic)


def by_batch(dead_lettered: Iterable[DeadLettered]) -> Mapping[int, DeadLetteredRows]:
    """Return batch -> its dead-lettered rows. `dead_lettered` is of one store and dataset."""
    ids: defaultdict[int, set[int]] = defaultdict(set)
    unnamed: Counter[int] = Counter()
    for batch_id, row_id, rows in dead_lettered:
        if row_id is None:
            unnamed[batch_id] += rows
        else:
            ids[batch_id].add(row_id)
    return {batch: DeadLetteredRows(frozenset(ids[batch]), unnamed[batch]) for batch in ids.keys() | unnamed.keys()}
