"""Rows read back from a store: their lines, and whether they are the rows that the ledger says were accepted.

The publisher, replay and verify read rows back, and all of them do it here. The committer makes the lines and the
checksum of rows that are new (`RowCodec.encode`, `rows.checksum`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from services.core.ids import ROW_BITS, batch_of
from services.core.ledger import Batch
from services.core.rows import CHECKSUM_MASK, Row, RowCodec, checksum

_ENCODED_AT_ONCE = 10_000  # rows; bounds the memory


class Run(NamedTuple):
    """Consecutive rows of one batch. `lines[i]` is the line of `rows[i]`, without a newline."""

    batch_id: int
    rows: Sequence[Row]
    lines: Sequence[bytes]


class ReadBack:
    """Counts the rows of each batch and adds up their checksums, while the rows are read. Not thread-safe."""

    def __init__(self, codec: RowCodec) -> None:
        self._codec = codec
        self._rows: Counter[int] = Counter()
        self._sums: Counter[int] = Counter()

    def runs(self, rows: Iterable[Row]) -> Iterator[Run]:
        """Yield all `rows`, in their order, as runs of some thousand rows at most. Each run is counted already.

        Raises what `rows` raises.
        """
        source = iter(rows)
        while some := list(islice(source, _ENCODED_AT_ONCE)):
            lines = self._codec.encode(some)
            for start, stop in _runs(some):
                run = Run(batch_of(some[start][0]), some[start:stop], lines[start:stop])
                self._rows[run.batch_id] += stop - start
                self._sums[run.batch_id] += checksum(run.lines)
                yield run

    def count(self, rows: Iterable[Row]) -> None:
        """Read all `rows`, and keep none of them. Raises what `rows` raises."""
        for _ in self.runs(rows):
            pass

    def rows(self, batch_id: int) -> int:
        """Return how many rows of the batch were read."""
        return self._rows[batch_id]

    def is_as_accepted(self, batch: Batch) -> bool:
        """Return whether the rows of the batch that were read have the checksum that the ledger has."""
        return self._sums[batch.batch_id] & CHECKSUM_MASK == batch.checksum


def _runs(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Yield the places [start, stop) of consecutive rows of one batch. There is at least one row."""
    batches = np.fromiter(map(itemgetter(0), rows), np.int64, len(rows)) >> ROW_BITS
    changes = np.flatnonzero(np.diff(batches)) + 1
    return pairwise([0, *changes.tolist(), len(rows)])
