"""Compares the rows of one dataset in one store with the batches that the ledger says were accepted."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.core.dataset import Dataset
from services.core.ids import MAX_BATCH, batch_of, first_id
from services.core.ledger import Batch
from services.core.ports import StoreReader
from services.core.read_back import ReadBack
from services.core.rows import Row, RowCodec
from services.verify.dead_letters import DeadLetteredRows, LookUp

_CHUNK_ROWS = 2_000_000  # counted by one query of a store
_EXAMPLES = 5

Advance = Callable[[int], None]
"""Called after each chunk with the number of rows that it reconciled."""


@dataclass(slots=True)
class Result:
    """Rows of one dataset in one store. `found` counts distinct ids; `duplicated` what was found beyond them.

    `compared` and `differing` are batches: those whose rows, read back, were hashed against the ledger's checksum.
    Only complete batches are compared: of the others it is known already that they differ. `altered`: the rows of the
    differing batches. `not_loaded`: those of the missing rows that belong to batches above `watermark`, the store's
    watermark before it was read.
    """

    dataset: str
    store: str
    watermark: int = MAX_BATCH
    batches: int = 0
    expected: int = 0
    found: int = 0
    missing: int = 0
    extra: int = 0
    duplicated: int = 0
    dead_lettered: int = 0
    compared: int = 0
    differing: int = 0
    altered: int = 0
    not_loaded: int = 0
    examples: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def ok(self) -> bool:
        return not (self.missing or self.extra or self.duplicated or self.differing)

    def example(self, text: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)


@dataclass(frozen=True, slots=True)
class Selection:
    """The batches to reconcile: `first`..`last`, and the checksums of `sample` of them (None: of all)."""

    first: int
    last: int
    sample: int | None
    seed: int


def reconcile(
    reader: StoreReader,
    dataset: Dataset,
    accepted: Iterable[Batch],
    look_up: LookUp,
    selection: Selection,
    advance: Advance,
    watermark: int = MAX_BATCH,
) -> Result:
    """Compare the rows in the store with `accepted`: the ledger's batches of the dataset in the selection, in order.

    `look_up` finds dead-lettered rows. `watermark`: of the store, before this call. Blocks. Raises StoreDown when the
    store or the dead letters cannot be read.
    """
    result = Result(dataset.name, reader.name, watermark)
    sample = _Sample(selection.sample or 0, random.Random(selection.seed))  # noqa: S311 -- no secret
    codec = RowCodec(dataset)
    for first, last, batches in _chunks(accepted, selection):
        complete = _count(reader, dataset, first, last, batches, look_up, result)
        if selection.sample is None:
            _compare(codec, complete, reader.rows(dataset, first, last), result)
        else:
            sample.offer(complete)
        advance(sum(batch.rows for batch in batches))
    for batch in sample.chosen():
        _compare(codec, [batch], reader.rows_of(dataset, [batch]), result)
    return result


def _chunks(accepted: Iterable[Batch], selection: Selection) -> Iterator[tuple[int, int, list[Batch]]]:
    """Yield (first id, last id, the batches in between). The chunks cover all ids of the selection."""
    first, rows, batches = selection.first, 0, list[Batch]()
    for batch in accepted:
        batches.append(batch)
        rows += batch.rows
        if rows >= _CHUNK_ROWS:
            yield first, batch.batch_id, batches
            first, rows, batches = batch.batch_id + 1, 0, []
    if first <= selection.last:
        yield first, selection.last, batches


def _count(
    reader: StoreReader,
    dataset: Dataset,
    first: int,
    last: int,
    batches: list[Batch],
    look_up: LookUp,
    result: Result,
) -> list[Batch]:
    """Count the rows of `batches`, and add to `result`. Return the batches that seem complete by their counts.

    Dead letters are looked up after the rows were counted, because the store may dead-letter rows meanwhile.
    """
    stored = {batch_id: (rows, distinct) for batch_id, rows, distinct in reader.counts(dataset, first, last)}
    dead_lettered = look_up([batch.batch_id for batch in batches])
    partial = [batch.batch_id for batch in batches if batch.batch_id in dead_lettered]
    ids = _ids(reader, dataset, partial)
    complete = []
    for batch in batches:
        rows, distinct = stored.pop(batch.batch_id, (0, 0))
        dead = dead_lettered.get(batch.batch_id)
        if add_counts(batch, rows, distinct, (ids[batch.batch_id], dead) if dead else None, result):
            complete.append(batch)
    for batch_id, (rows, distinct) in stored.items():
        result.found += distinct
        result.extra += distinct
        result.duplicated += rows - distinct
        result.example(f"batch {batch_id} is not in the ledger: {rows} rows")
    return complete


def add_counts(
    batch: Batch, rows: int, distinct: int, partial: tuple[set[int], DeadLetteredRows] | None, result: Result
) -> bool:
    """Add to `result` what a store has of `batch`. Return whether it has each row once, as far as counts can tell.

    `partial`: the ids in the store, and the rows that were dead-lettered; None when none were.
    """
    duplicated = rows - distinct
    if partial:
        missing, extra = _differences(batch, *partial)
        result.dead_lettered += partial[1].rows
    else:
        missing, extra = max(0, batch.rows - distinct), max(0, distinct - batch.rows)
    result.batches += 1
    result.expected += batch.rows
    result.found += distinct
    result.missing += missing
    result.not_loaded += missing if batch.batch_id > result.watermark else 0
    result.extra += extra
    result.duplicated += duplicated
    if missing or extra or duplicated:
        what = {"missing": missing, "extra": extra, "duplicated": duplicated}
        found = ", ".join(f"{count} {name}" for name, count in what.items() if count)
        result.example(f"batch {batch.batch_id} of {batch.rows} rows: {found}")
        return False
    return partial is None


def _ids(reader: StoreReader, dataset: Dataset, batches: Sequence[int]) -> Mapping[int, set[int]]:
    """Return batch -> ids of its rows in the store. `batches` are in order."""
    ids: dict[int, set[int]] = {batch_id: set() for batch_id in batches}
    for row in reader.rows(dataset, batches[0], batches[-1]) if batches else ():
        if (batch_id := batch_of(row[0])) in ids:
            ids[batch_id].add(row[0])
    return ids


def _differences(batch: Batch, stored: set[int], dead_lettered: DeadLetteredRows) -> tuple[int, int]:
    """Return (missing, extra), by ids: by counts, a row that is both dead-lettered and stored would hide a lost row."""
    start = first_id(batch.batch_id)
    accepted = range(start, start + batch.rows)
    absent = sum(row_id not in stored and row_id not in dead_lettered.ids for row_id in accepted)
    extra = sum(row_id not in accepted or row_id in dead_lettered.ids for row_id in stored)
    return max(0, absent - dead_lettered.unnamed), extra + max(0, dead_lettered.unnamed - absent)


def _compare(codec: RowCodec, batches: list[Batch], rows: Iterator[Row], result: Result) -> None:
    """Compare the contents of `batches`. `rows` are their rows in the store, and possibly rows of other batches."""
    if not batches:
        return
    read_back = ReadBack(codec)
    read_back.count(rows)
    for batch in batches:
        compare(batch, read_back, result)


def compare(batch: Batch, read_back: ReadBack, result: Result) -> None:
    """Add to `result` whether the contents of `batch` in the store are as accepted; `back` has read all its rows."""
    result.compared += 1
    if not read_back.is_as_accepted(batch):
        result.differing += 1
        result.altered += batch.rows
        result.example(f"batch {batch.batch_id} of {batch.rows} rows: contents differ")


class _Sample:
    """A uniform choice of at most `size` batches among all that are offered."""

    def __init__(self, size: int, chance: random.Random) -> None:
        self._size = size
        self._chance = chance
        self._offered = 0
        self._chosen: list[Batch] = []

    def offer(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self._offered += 1
            if len(self._chosen) < self._size:
                self._chosen.append(batch)
            elif (place := self._chance.randrange(self._offered)) < self._size:
                self._chosen[place] = batch

    def chosen(self) -> list[Batch]:
        return sorted(self._chosen, key=lambda batch: batch.batch_id)
