"""Finds the rows of some batches that a store lacks, and reads them from PostgreSQL."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from services.core.errors import NeedsOperator
from services.core.ledger import Batch
from services.core.ports import StoreReader
from services.core.read_back import ReadBack
from services.core.rows import RowCodec

Gaps = Mapping[int, Set[int]]
"""Incomplete batch -> ids of its rows that must not be written: they are in the store, or were dead-lettered."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Rows to write. `ids[i]` is the id of the row of `lines[i]`; the lines have no newlines."""

    ids: Sequence[int]
    lines: Sequence[bytes]


def find(reader: StoreReader, codec: RowCodec, batches: Sequence[Batch], dead_lettered: Gaps) -> Gaps:
    """Return the gaps of `batches` in the store of `reader`. `dead_lettered`: batch -> ids of its dead-lettered rows.

    Blocks. Raises what the reader raises.
    """
    if not batches:
        return {}
    distinct = {batch_id: ids for batch_id, _, ids in reader.counts_of(codec.dataset, batches)}
    gaps: dict[int, Set[int]] = {}
    for batch in batches:
        found = distinct.get(batch.batch_id, 0)
        settled = dead_lettered.get(batch.batch_id, frozenset())
        if found < batch.rows:
            there = reader.rows_of(codec.dataset, [batch]) if found else ()
            settled = settled | {row[0] for row in there}  # the store may hold a dead-lettered row all the same
            if len(settled) < batch.rows:
                gaps[batch.batch_id] = settled
    return gaps


def read(
    source: StoreReader, codec: RowCodec, batches: Sequence[Batch], gaps: Gaps, max_bytes: int | None = None
) -> Missing | None:
    """Read the rows that close the gaps of `batches` from `source`; None if their lines take more than `max_bytes`.

    Blocks. Raises StoreDown, and NeedsOperator when `source` does not have all rows as they were accepted.
    """
    ids: list[int] = []
    lines: list[bytes] = []
    size = 0
    back = ReadBack(codec)
    for run in back.runs(source.rows_of(codec.dataset, [batch for batch in batches if batch.batch_id in gaps])):
        settled = gaps[run.batch_id]
        for row, line in zip(run.rows, run.lines, strict=True):
            if row[0] not in settled:
                ids.append(row[0])
                lines.append(line)
                size += len(line)
        if max_bytes is not None and size > max_bytes:
            return None
    for batch in batches:
        if batch.batch_id not in gaps:
            continue
        if back.rows(batch.batch_id) != batch.rows:
            raise NeedsOperator(
                f"batch {batch.batch_id} of {batch.dataset} has {batch.rows} rows in the ledger and"
                f" {back.rows(batch.batch_id)} in {source.name}: run `logpipe verify --store {source.name}`"
            )
        if not back.is_as_accepted(batch):
            raise NeedsOperator(
                f"batch {batch.batch_id} of {batch.dataset} reads differently from {source.name} than it was accepted:"
                " this process may be older than the ingest API, and not know a column of it: update it; else run"
                f" `logpipe verify --store {source.name}`"
            )
    return Missing(ids, lines)
