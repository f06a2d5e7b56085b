"""What a store lacks of some batches, and those rows as PostgreSQL has them."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from services.core.errors import LogpipeError, NeedsOperator
from services.core.ledger import Batch
from services.core.ports import StoreReader
from services.core.read_back import ReadBack
from services.core.rows import RowCodec

Gaps = Mapping[int, Set[int]]
"""Batch that is not complete -> ids of its rows that are not to be written: they are there, or were put aside."""


class TooLarge(LogpipeError):
    """The rows of these batches are too many bytes to be held at once."""


@dataclass(frozen=True, slots=True)
class Missing:
    """`ids[i]` is the row of `lines[i]`."""

    ids: Sequence[int]
    lines: Sequence[bytes]


def find(reader: StoreReader, codec: RowCodec, batches: Sequence[Batch], aside: Gaps) -> Gaps:
    """`aside`: batch -> ids put aside. Raises as the reader does."""
    if not batches:
        return {}
    distinct = {batch_id: ids for batch_id, _, ids in reader.counts_of(codec.dataset, batches)}
    gaps: dict[int, Set[int]] = {}
    for batch in batches:
        found = distinct.get(batch.batch_id, 0)
        settled = aside.get(batch.batch_id, frozenset())
        if found < batch.rows:
            there = reader.rows_of(codec.dataset, [batch]) if found else ()
            settled = settled | {row[0] for row in there}  # what was put aside may be there all the same
            if len(settled) < batch.rows:
                gaps[batch.batch_id] = settled
    return gaps


def read(
    source: StoreReader, codec: RowCodec, batches: Sequence[Batch], gaps: Gaps, max_bytes: int | None = None
) -> Missing:
    """The rows that close the gaps, those of `batches`, from `source`.

    Raises TooLarge beyond `max_bytes`, StoreDown, and NeedsOperator when `source` has not all rows as
    they were accepted.
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
            raise TooLarge(f"more than {max_bytes} bytes")
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
