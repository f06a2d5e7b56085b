"""Asks one store or all of them, at a point where what they have loaded is known."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec
import xxhash

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import Backpressure, Invalid, LogpipeError, QueryTimeout, StoreDown
from services.core.ports import DEFAULT_QUERY_SECONDS, StoreReader
from services.core.queries import Query, QueryResult, StatsQuery
from services.core.stopping import Stop
from services.ledger.watermark import Watermarks
from services.query_api.cache import ResultCache
from services.query_api.engines import Engine, OpenReader, Store
from services.query_api.scopes import Scopes
from services.runtime import metrics

_KINDS = {"ListQuery": "list", "AggregateQuery": "aggregate", "StatsQuery": "stats"}
_GRACE_SECONDS = 5.0  # after its time, a store that has not even said so counts as down

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reply:
    """One store's answer. `total_ms` includes finding the watermark."""

    source: str
    answer: QueryResult
    as_of: int
    total_ms: float


@dataclass(frozen=True, slots=True)
class Stats:
    """One store's answers by name of dataset, all at one point."""

    source: str
    answers: Mapping[str, QueryResult]
    as_of: int
    total_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answers of those engines that gave one, by `source`, and why the `missing` ones did not.

    `agree` is None when fewer than two answered.
    """

    answers: Mapping[str, QueryResult]
    digests: Mapping[str, str]
    missing: Mapping[str, str]
    as_of: int
    total_ms: float

    @property
    def agree(self) -> bool | None:
        return len(set(self.digests.values())) == 1 if len(self.digests) > 1 else None


class QueryService:
    """`engines`: by name of store, its other engines by name. `seconds`: what a query may take.

    `cache`: keeps the answers of single stores, unless they are asked for a scan; it is the caller's to close. Answers
    are kept in the scope that `scopes` gives them.
    """

    def __init__(
        self,
        readers: Sequence[StoreReader],
        datasets: Sequence[Dataset],
        watermarks: Watermarks,
        engines: Mapping[str, Mapping[str, OpenReader]] | None = None,
        seconds: float = DEFAULT_QUERY_SECONDS,
        cache: ResultCache | None = None,
        scopes: Scopes | None = None,
    ) -> None:
        self._stores = {reader.route: Store.of(reader, (engines or {}).get(reader.name, {})) for reader in readers}
        self._datasets = datasets
        self._watermarks = watermarks
        self._seconds = seconds
        self._cache = cache
        self._late: Mapping[str, str] = {}
        self._scopes = scopes

    async def ask(
        self,
        route: str,
        query: Query,
        present: Callable[[Reply], Result],
        as_of: int | None = None,
        engine: str | None = None,
        *,
        use_cache: bool = True,
    ) -> Result:
        """Ask the store called `route` in URLs, as of its watermark or an earlier point.

        `present` makes of the reply what is returned, in a thread of the store: large replies take their time. Raises
        Invalid, StoreDown, Backpressure or QueryTimeout.
        """
        start, asked = time.perf_counter(), self._store(route).engine(engine)
        deadline = time.monotonic() + self._seconds

        def answer(stop: Stop) -> Result:
            point = _point(as_of, self._watermark(asked.store, query.dataset))
            answer = self._kept(asked, query, point, deadline, stop, use_cache=use_cache)
            return present(Reply(asked.source, answer, point, _ms_since(start)))

        return await asked.pool.run(answer, self._seconds, _GRACE_SECONDS)

    async def stats(
        self,
        route: str,
        as_of: int | None = None,
        engine: str | None = None,
        *,
        scan: bool = False,
        use_cache: bool = True,
    ) -> Stats:
        """How many rows each dataset has in one store. Raises as `ask` does."""
        start, asked = time.perf_counter(), self._store(route).engine(engine)
        deadline = time.monotonic() + self._seconds

        def answer(stop: Stop) -> Stats:
            point = _point(as_of, min(self._watermark(asked.store, dataset) for dataset in self._datasets))
            answers = {
                each.name: self._kept(asked, StatsQuery(each, scan), point, deadline, stop, use_cache=use_cache)
                for each in self._datasets
            }
            return Stats(asked.source, answers, point, _ms_since(start))

        return await asked.pool.run(answer, self._seconds, _GRACE_SECONDS)

    async def compare(self, query: Query, as_of: int | None = None, *, all_engines: bool = False) -> Comparison:
        """Ask all stores at once, as of the lowest of their watermarks or an earlier point.

        Raises Invalid, or StoreDown when none answers.
        """
        start = time.perf_counter()
        stores = self._stores.values()
        marks, away = await self._of_each(
            [store.default for store in stores], lambda engine, stop: self._watermark(engine.store, query.dataset)
        )
        chosen = [e for s in stores for e in (s.default, *(s.engines.values() if all_engines else ()))]
        failed: dict[str, LogpipeError] = {e.source: away[e.store.source] for e in chosen if e.store.source in away}
        while True:
            point = _point(as_of, min(marks.values(), default=0)) if marks else 0
            able = [engine for engine in chosen if engine.store.source in marks]
            deadline = time.monotonic() + self._seconds
            found, failures = await self._of_each(
                able, partial(self._digested, query=query, as_of=point, deadline=deadline)
            )
            failed.update(failures)
            gone = {e.store.source for e in chosen if isinstance(failures.get(e.source), StoreDown)}
            gone -= {e.store.source for e in chosen if e.source in found}
            marks = {source: mark for source, mark in marks.items() if source not in gone}
            # A store that went away must not hold the others back at a point that it alone was asked for.
            if as_of is not None or min(marks.values(), default=point) == point:
                break
        missing = {source: str(error) for source, error in failed.items() if source not in found}
        if not found:
            if all(isinstance(error, QueryTimeout) for error in failed.values()):
                raise QueryTimeout("every store", self._seconds)
            raise StoreDown("every store", "; ".join(missing.values()))
        answers = {source: answer for source, (answer, _) in found.items()}
        digests = {source: hashed for source, (_, hashed) in found.items()}
        return Comparison(answers, digests, missing, point, _ms_since(start))

    def measure(self, late_seconds: float) -> None:
        """Set the gauges of every store's watermark and lag; a store that cannot be reached keeps its last values.

        A store whose oldest batch above the watermark is older than `late_seconds` counts as late.
        """
        late: dict[str, str] = {}
        for reader in (store.reader for store in self._stores.values()):
            for dataset in self._datasets:
                name = f"{reader.name}/{dataset.name}"
                try:
                    mark = self._watermarks.of(reader, dataset)
                    lag = self._watermarks.lag(dataset, mark)
                except LogpipeError as error:
                    late[name] = str(error)
                    continue
                metrics.gauge(metric_names.WATERMARK_BATCH, reader.name, dataset.name).set(mark)
                metrics.gauge(metric_names.WATERMARK_LAG_BATCHES, reader.name, dataset.name).set(lag.batches)
                metrics.gauge(metric_names.WATERMARK_LAG_SECONDS, reader.name, dataset.name).set(lag.seconds)
                if lag.seconds > late_seconds:
                    late[name] = f"{lag.seconds:.0f} s behind: see /readyz of the process that fills the store"
        self._late = late

    def late(self) -> str | None:
        """The stores that were late when they were measured last, or could not be measured, each with its reason."""
        return "; ".join(f"{name}: {reason}" for name, reason in self._late.items()) or None

    def close(self) -> None:
        for store in self._stores.values():
            for engine in (store.default, *store.engines.values()):
                engine.close()

    def _store(self, route: str) -> Store:
        if route not in self._stores:
            raise Invalid(f"unknown store {route!r}; there are: {', '.join(self._stores)}")
        return self._stores[route]

    def _watermark(self, reader: StoreReader, dataset: Dataset) -> int:
        try:
            return self._watermarks.of(reader, dataset)
        except StoreDown as error:
            # Without the ledger the other stores still answer, as of the last point that was known.
            known = self._watermarks.last_known(reader, dataset)
            if error.store == reader.name or not known:
                raise
            return known

    def _kept(
        self, engine: Engine, query: Query, as_of: int, deadline: float, stop: Stop, *, use_cache: bool
    ) -> QueryResult:
        ask = partial(self._answer, engine, stop, query, as_of, deadline)
        if self._cache is None or self._scopes is None or query.scan or not use_cache:
            return ask()
        if (scope := self._scopes.of(engine.store, query.dataset)) is None:
            return ask()
        return self._cache.answer(engine.label, scope, query, as_of, ask)

    def _answer(self, engine: Engine, stop: Stop, query: Query, as_of: int, deadline: float) -> QueryResult:
        reader = engine.reader()
        if (left := deadline - time.monotonic()) <= 0:
            raise QueryTimeout(engine.label, self._seconds)
        answer = reader.execute(query, as_of, left, stop)
        kind = _KINDS[type(query).__name__]
        metrics.histogram(metric_names.QUERY_SECONDS, engine.label, query.dataset.name, kind).observe(
            answer.elapsed_ms / 1e3
        )
        return answer

    def _digested(
        self, engine: Engine, stop: Stop, query: Query, as_of: int, deadline: float
    ) -> tuple[QueryResult, str]:
        answer = self._answer(engine, stop, query, as_of, deadline)
        return answer, digest(answer)

    async def _of_each(
        self, engines: Iterable[Engine], work: Callable[[Engine, Stop], Result]
    ) -> tuple[dict[str, Result], dict[str, LogpipeError]]:
        """By source: what `work` gave, and why it failed where the store was down, full or too slow. All at once."""
        results: dict[str, Result] = {}
        failures: dict[str, LogpipeError] = {}

        async def run(engine: Engine) -> None:
            try:
                results[engine.source] = await engine.pool.run(partial(work, engine), self._seconds, _GRACE_SECONDS)
            except (StoreDown, Backpressure, QueryTimeout) as error:
                failures[engine.source] = error

        refused = await asyncio.gather(*map(run, engines), return_exceptions=True)
        for error in filter(None, refused):
            raise error
        return results, failures


def _point(wanted: int | None, latest: int) -> int:
    if wanted is not None and wanted > latest:
        raise Invalid(f"as_of: {wanted} is not reached yet, the latest is {latest}")
    return latest if wanted is None else wanted


def digest(answer: QueryResult) -> str:
    """Equal for equal rows in equal order and equal totals."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode([answer.rows, answer.total]))


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
