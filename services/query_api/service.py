"""Asks one store or all of them, at a point where what they have loaded is known."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec
import xxhash

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import Backpressure, Invalid, LogpipeError, StoreDown
from services.core.ports import StoreReader
from services.core.queries import Answer, Question, StatsQuestion
from services.ledger.watermark import Watermarks
from services.runtime import metrics

_KINDS = {"ListQuestion": "list", "AggregateQuestion": "aggregate", "StatsQuestion": "stats"}
_THREADS_A_STORE = 4

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reply:
    """One store's answer. `total_ms` includes finding the watermark."""

    source: str
    answer: Answer
    as_of: int
    total_ms: float


@dataclass(frozen=True, slots=True)
class Stats:
    """One store's answers by name of dataset, all at one point."""

    source: str
    answers: Mapping[str, Answer]
    as_of: int
    total_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answers of those stores that gave one, by `source`, and why the `missing` ones did not.

    `agree` is None when fewer than two answered.
    """

    answers: Mapping[str, Answer]
    digests: Mapping[str, str]
    missing: Mapping[str, str]
    as_of: int
    total_ms: float

    @property
    def agree(self) -> bool | None:
        return len(set(self.digests.values())) == 1 if len(self.digests) > 1 else None


class QueryService:
    def __init__(self, readers: Sequence[StoreReader], datasets: Sequence[Dataset], watermarks: Watermarks) -> None:
        self._readers = {reader.route: reader for reader in readers}
        self._datasets = datasets
        self._watermarks = watermarks
        self._threads = ThreadPoolExecutor(_THREADS_A_STORE * max(1, len(readers)), "compare")

    def ask(self, route: str, question: Question) -> Reply:
        """Ask the store called `route` in URLs, as of its own watermark. Raises Invalid or StoreDown."""
        reader, start = self._reader(route), time.perf_counter()
        as_of = self._watermark(reader, question.dataset)
        answer = self._answer(reader, question, as_of)
        return Reply(reader.source, answer, as_of, _ms_since(start))

    def stats(self, route: str) -> Stats:
        """How many rows each dataset has in one store. Raises Invalid or StoreDown."""
        reader, start = self._reader(route), time.perf_counter()
        as_of = min(self._watermark(reader, dataset) for dataset in self._datasets)
        answers = {d.name: self._answer(reader, StatsQuestion(d), as_of) for d in self._datasets}
        return Stats(reader.source, answers, as_of, _ms_since(start))

    def compare(self, question: Question) -> Comparison:
        """Ask all stores at once, as of the lowest of their watermarks. Raises StoreDown when none answers."""
        start = time.perf_counter()
        marks, missing = self._of_each(self._readers.values(), lambda r: self._watermark(r, question.dataset))
        while True:
            as_of = min(marks.values(), default=0)
            able = [reader for reader in self._readers.values() if reader.source in marks]
            answers, failed = self._of_each(able, partial(self._answer, question=question, as_of=as_of))
            missing.update(failed)
            marks = {source: mark for source, mark in marks.items() if source not in failed}
            # A store that went away must not hold the others back at a point that it alone was asked for.
            if min(marks.values(), default=as_of) == as_of:
                break
        if not answers:
            raise StoreDown("every store", "; ".join(missing.values()))
        digests = {source: digest(answer) for source, answer in answers.items()}
        return Comparison(answers, digests, missing, as_of, _ms_since(start))

    def measure(self) -> None:
        """Set the gauges of every store's watermark and lag; what cannot be reached keeps its last value."""
        for reader in self._readers.values():
            for dataset in self._datasets:
                try:
                    mark = self._watermarks.of(reader, dataset)
                    lag = self._watermarks.lag(dataset, mark)
                except LogpipeError:
                    continue
                metrics.gauge(metric_names.WATERMARK_BATCH, reader.name, dataset.name).set(mark)
                metrics.gauge(metric_names.WATERMARK_LAG_BATCHES, reader.name, dataset.name).set(lag)

    def close(self) -> None:
        self._threads.shutdown()
        for reader in self._readers.values():
            reader.close()

    def _reader(self, route: str) -> StoreReader:
        if route not in self._readers:
            raise Invalid(f"unknown store {route!r}; there are: {', '.join(self._readers)}")
        return self._readers[route]

    def _watermark(self, reader: StoreReader, dataset: Dataset) -> int:
        try:
            return self._watermarks.of(reader, dataset)
        except StoreDown as error:
            # Without the ledger the other stores still answer, as of the last point that was known.
            known = self._watermarks.last_known(reader, dataset)
            if error.store == reader.name or not known:
                raise
            return known

    def _answer(self, reader: StoreReader, question: Question, as_of: int) -> Answer:
        answer = reader.answer(question, as_of)
        kind = _KINDS[type(question).__name__]
        metrics.histogram(metric_names.QUERY_SECONDS, reader.name, question.dataset.name, kind).observe(
            answer.elapsed_ms / 1e3
        )
        return answer

    def _of_each(
        self, readers: Iterable[StoreReader], work: Callable[[StoreReader], Result]
    ) -> tuple[dict[str, Result], dict[str, str]]:
        """By source: what `work` gave, and why it failed where the store was down or full. All at once."""
        under_way = {reader.source: self._threads.submit(work, reader) for reader in readers}
        results: dict[str, Result] = {}
        failures: dict[str, str] = {}
        for source, future in under_way.items():
            try:
                results[source] = future.result()
            except (StoreDown, Backpressure) as error:
                failures[source] = str(error)
        return results, failures


def digest(answer: Answer) -> str:
    """Equal for equal rows in equal order and equal totals."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode([answer.rows, answer.total]))


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
