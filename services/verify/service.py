"""Runs a verification: chooses the last batch, waits until the stores have loaded it, and compares each store."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from rich.progress import Progress

from services.core.dataset import Dataset
from services.core.dead_letter import SOURCE
from services.core.errors import LogpipeError, StoreDown
from services.core.instants import DAY
from services.core.ledger import Batch
from services.core.ports import StoreReader
from services.ledger import floors, reading, sampling, source_progress, verifications
from services.ledger.verifications import Verified
from services.ledger.watermark import Watermarks
from services.postgres.clock import now_microseconds
from services.postgres.pool import Pool
from services.verify import sample, sources
from services.verify.dead_letters import DeadLetterLookup
from services.verify.reconcile import Result, Selection, reconcile
from services.verify.report import Report
from services.verify.sources import SourceResult

_PAGE = 10_000  # batches read at once
_POLL_SECONDS = 0.2
_SETTLE_SECONDS = 30  # for transactions under way at the start: they end in milliseconds, unless one hangs


@dataclass(frozen=True, slots=True)
class Options:
    """`checksums`: batches whose checksums are compared, None for all. `wait`: seconds the stores are given to load.

    `sample`: the number of batches of each dataset that are read, None for all. `days`: only batches that were accepted
    in the last so many days, None for all.
    """

    datasets: Sequence[Dataset]
    checksums: int | None
    seed: int
    wait: float
    sample: int | None = None
    days: float | None = None


class Verification:
    def __init__(self, ledger: Pool, dead_letters: DeadLetterLookup, progress: Progress) -> None:
        self._ledger = ledger
        self._watermarks = Watermarks(ledger)
        self._dead_letters = dead_letters
        self._progress = progress

    def run(self, readers: Sequence[StoreReader], options: Options) -> Report:
        """Verify the stores. Raises StoreDown of the ledger; a store that cannot be read is named in the report."""
        last = self._as_of()
        first = self._first(options.days)
        self._await(readers, options, last)
        results: list[Result] = []
        unchecked: dict[str, str] = {}
        for dataset in options.datasets:
            for reader in readers:
                try:
                    check = partial(self._reconcile, reader, dataset, last, options)
                    results.append(repeated_if_floor_rises(partial(self._floor, dataset, first), check))
                except LogpipeError as error:
                    others = [unchecked[reader.name]] if reader.name in unchecked else []
                    unchecked[reader.name] = "; ".join([*others, f"{dataset.name}: {error}"])
        self._record(results, options)
        reconciled = self._sources(options, unchecked)
        return Report(last, options.seed, results, unchecked, options.sample, first, reconciled)

    def _sources(self, options: Options, unchecked: dict[str, str]) -> list[SourceResult]:
        """Reconcile the foreign topics that were read into the datasets. Adds to `unchecked`."""
        found = []
        for dataset in options.datasets:
            with self._ledger.connection() as connection:
                counts = source_progress.counts(connection, dataset.name)
                floor = floors.floor(connection, dataset.name)
            try:
                found += [sources.reconcile(each, floor, self._dead_letters.of_source) for each in counts]
            except LogpipeError as error:
                unchecked[SOURCE] = f"{dataset.name}: {error}"
        return found

    def _record(self, results: Sequence[Result], options: Options) -> None:
        """Record the results for the metrics of the query API, also those of a verification that a person runs."""
        complete = options.sample is None and options.days is None
        found = [
            Verified(
                result.store,
                result.dataset,
                result.missing - result.not_loaded,
                result.extra,
                result.duplicated,
                result.altered,
                result.batches,
            )
            for result in results
        ]
        with self._ledger.connection() as connection:
            verifications.record(
                connection, found, complete=complete, compared_all=complete and options.checksums is None
            )

    def _first(self, days: float | None) -> int:
        if days is None:
            return 0
        with self._ledger.connection() as connection:
            return reading.first_since(connection, now_microseconds(connection) - int(days * DAY))

    def _floor(self, dataset: Dataset, first: int) -> int:
        with self._ledger.connection() as connection:
            return max(first, floors.floor(connection, dataset.name))

    def _as_of(self) -> int:
        """Return the last committed batch, once no lower batch can still appear. Blocks. Raises StoreDown."""
        with self._ledger.connection() as connection:
            last = reading.last_batch(connection)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while self._watermarks.settled() < last:
            if time.monotonic() > deadline:
                blockers = "; ".join(map(str, self._watermarks.blocking_transactions(0)))
                raise StoreDown("postgres", f"a batch below {last} is still being written by {blockers}")
            time.sleep(_POLL_SECONDS)
        return last

    def _await(self, readers: Sequence[StoreReader], options: Options, last: int) -> None:
        deadline = time.monotonic() + options.wait
        for dataset in options.datasets:
            for reader in readers:
                task = self._progress.add_task(f"{reader.name} loads {dataset.name}", total=last)
                try:
                    while (watermark := self._watermarks.of(reader, dataset)) < last and time.monotonic() < deadline:
                        self._progress.update(task, completed=watermark)
                        time.sleep(_POLL_SECONDS)
                except LogpipeError:
                    pass  # the comparison will fail for the same reason, and report it
                self._progress.remove_task(task)

    def _reconcile(self, reader: StoreReader, dataset: Dataset, last: int, options: Options, floor: int) -> Result:
        if options.sample is not None:
            return self._reconcile_sample(reader, dataset, last, options, floor, options.sample)
        selection = Selection(floor, last, options.checksums, options.seed)
        watermark = self._watermarks.of(reader, dataset)
        behind = self._behind(dataset, watermark, selection.last)
        task = self._progress.add_task(f"{reader.name}: {dataset.name}", total=self._accepted_rows(dataset, selection))
        try:
            result = reconcile(
                reader,
                dataset,
                self._accepted(dataset, selection),
                partial(self._dead_letters.of, reader, dataset),
                selection,
                lambda rows: self._progress.advance(task, rows),
                watermark,
            )
        finally:
            self._progress.remove_task(task)
        if behind and result.missing:
            result.note = f"{behind} batches were not loaded yet when it was read: try --wait"
        return result

    def _reconcile_sample(
        self, reader: StoreReader, dataset: Dataset, last: int, options: Options, floor: int, size: int
    ) -> Result:
        watermark = self._watermarks.of(reader, dataset)
        chosen = self._sample(dataset.name, floor, last, size, options.seed)
        ids = [batch.batch_id for batch in chosen]
        task = self._progress.add_task(
            f"{reader.name}: {len(chosen)} batches of {dataset.name}", total=sum(batch.rows for batch in chosen)
        )
        try:
            result = sample.reconcile(
                reader,
                dataset,
                chosen,
                partial(self._dead_letters.of, reader, dataset),
                lambda rows: self._progress.advance(task, rows),
                watermark,
            )
        finally:
            self._progress.remove_task(task)
        if result.missing and (behind := sum(batch_id > watermark for batch_id in ids)):
            result.note = f"{behind} batches of the sample were not loaded yet when it was read: try --wait"
        return result

    @cache  # noqa: B019 - once for all stores; a verification lives as long as its command
    def _sample(self, dataset: str, floor: int, last: int, size: int, seed: int) -> list[Batch]:
        chance = random.Random(f"{seed} {dataset}")  # noqa: S311 - the same batches whenever the seed is given
        with self._ledger.connection() as connection:
            return sampling.choose(connection, dataset, floor, last, size, chance)

    def _behind(self, dataset: Dataset, watermark: int, last: int) -> int:
        with self._ledger.connection() as connection:
            return reading.count(connection, dataset.name, watermark, last).batches

    def _accepted_rows(self, dataset: Dataset, selection: Selection) -> int | None:
        with self._ledger.connection() as connection:
            return reading.count(connection, dataset.name, selection.first - 1, selection.last).rows

    def _accepted(self, dataset: Dataset, selection: Selection) -> Iterator[Batch]:
        after = selection.first - 1
        while True:
            with self._ledger.connection() as connection:
                page = reading.batches(connection, dataset.name, after, selection.last, _PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].batch_id


def repeated_if_floor_rises(floor: Callable[[], int], check: Callable[[int], Result]) -> Result:
    """Return the result of `check` from the floor on. Repeat the check if retention has raised the floor meanwhile."""
    while True:
        result = check(start := floor())
        if floor() == start:
            return result
