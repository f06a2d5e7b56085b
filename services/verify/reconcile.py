"""Compares what one store holds of one dataset with what the ledger says was accepted."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from services.core.dataset import Dataset
from services.core.ids import batch_of
from services.core.ledger import Batch
from services.core.ports import StoreReader
from services.core.rows import RowCodec, checksum

_CHUNK_ROWS = 2_000_000  # counted by a store in one go
_ENCODED_AT_ONCE = 10_000
_EXAMPLES = 5

Advance = Callable[[int], None]
"""Told after each step how many rows were reconciled in it."""


@dataclass(slots=True)
class Result:
    """Rows of one dataset in one store. `found` counts distinct ids; `duplicated` what was found beyond them.

    `compared` and `differing` are batches: those whose rows, read back, were hashed against the ledger's checksum.
    Only complete batches are compared: of the others it is known already that they differ.
    """

    dataset: str
    store: str
    batches: int = 0
    expected: int = 0
    found: int = 0
    missing: int = 0
    extra: int = 0
    duplicated: int = 0
    dead_lettered: int = 0
    compared: int = 0
    differing: int = 0
    examples: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def ok(self) -> bool:
        return not (self.missing or self.extra or self.duplicated or self.differing)

    def example(self, text: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)


@dataclass(frozen=True, slots=True)
class Scope:
    """What to reconcile: the batches `first`..`last`, the checksums of `sample` of them (None: of all)."""

    first: int
    last: int
    sample: int | None
    seed: int


def reconcile(
    reader: StoreReader,
    dataset: Dataset,
    accepted: Iterable[Batch],
    dead_letters: Mapping[int, int],
    scope: Scope,
    advance: Advance,
) -> Result:
    """`accepted`: the dataset's batches in the ledger within the scope, in order. `dead_letters`: batch -> rows.

    Raises StoreDown when the store cannot be read.
    """
    result = Result(dataset.name, reader.name)
    sample = _Sample(scope.sample or 0, random.Random(scope.seed))  # noqa: S311 -- no secret
    codec = RowCodec(dataset)
    for first, last, batches in _chunks(accepted, scope):
        complete = _count(reader, dataset, first, last, batches, dead_letters, result)
        if scope.sample is None:
            _compare(reader, codec, complete, first, last, result)
        else:
            sample.offer(complete)
        advance(sum(batch.rows for batch in batches))
    for batch in sample.chosen():
        _compare(reader, codec, [batch], batch.batch_id, batch.batch_id, result)
    return result


def _chunks(accepted: Iterable[Batch], scope: Scope) -> Iterator[tuple[int, int, list[Batch]]]:
    """(first id, last id, the batches in between): together they cover the scope, ids without a batch too."""
    first, rows, batches = scope.first, 0, list[Batch]()
    for batch in accepted:
        batches.append(batch)
        rows += batch.rows
        if rows >= _CHUNK_ROWS:
            yield first, batch.batch_id, batches
            first, rows, batches = batch.batch_id + 1, 0, []
    if first <= scope.last:
        yield first, scope.last, batches


def _count(
    reader: StoreReader,
    dataset: Dataset,
    first: int,
    last: int,
    batches: list[Batch],
    dead_letters: Mapping[int, int],
    result: Result,
) -> list[Batch]:
    """Adds to `result`; the batches that are in the store as they were accepted, as far as counting tells."""
    stored = {batch_id: (rows, distinct) for batch_id, rows, distinct in reader.counts(dataset, first, last)}
    complete = []
    for batch in batches:
        rows, distinct = stored.pop(batch.batch_id, (0, 0))
        dead = dead_letters.get(batch.batch_id, 0)
        missing, extra, duplicated = batch.rows - dead - distinct, distinct + dead - batch.rows, rows - distinct
        result.batches += 1
        result.expected += batch.rows
        result.found += distinct
        result.dead_lettered += dead
        result.missing += max(0, missing)
        result.extra += max(0, extra)
        result.duplicated += duplicated
        if missing or duplicated:
            what = {"missing": missing, "extra": extra, "duplicated": duplicated}
            told = ", ".join(f"{count} {name}" for name, count in what.items() if count > 0)
            result.example(f"batch {batch.batch_id} of {batch.rows} rows: {told}")
        elif not dead:
            complete.append(batch)
    for batch_id, (rows, distinct) in stored.items():
        result.found += distinct
        result.extra += distinct
        result.duplicated += rows - distinct
        result.example(f"batch {batch_id} is not in the ledger: {rows} rows")
    return complete


def _compare(reader: StoreReader, codec: RowCodec, batches: list[Batch], first: int, last: int, result: Result) -> None:
    if not batches:
        return
    sums: defaultdict[int, int] = defaultdict(int)
    rows = reader.rows(codec.dataset, first, last)
    while some := list(islice(rows, _ENCODED_AT_ONCE)):
        lines: defaultdict[int, list[bytes]] = defaultdict(list)
        for row, line in zip(some, codec.encode(some), strict=True):
            lines[batch_of(row[0])].append(line)
        for batch_id, its_lines in lines.items():
            sums[batch_id] = (sums[batch_id] + checksum(its_lines)) % (1 << 63)
    for batch in batches:
        result.compared += 1
        if sums[batch.batch_id] != batch.checksum:
            result.differing += 1
            result.example(f"batch {batch.batch_id} of {batch.rows} rows: contents differ")


class _Sample:
    """A uniform choice of at most `size` among all the batches offered, however many."""

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
