"""Runs queries on one store or on all of them, as of a batch up to which each store is known to be loaded."""

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
from services.core.queries import AggregateQuery, ListQuery, Query, QueryResult, StatsQuery, TrafficQuery
from services.core.stopping import Stop
from services.core.stores import Store
from services.ledger.watermark import Watermarks
from services.query_api.cache import ResultCache
from services.query_api.engines import Engine, OpenedStore
from services.query_api.scopes import Scopes
from services.runtime import metrics

_KINDS = {ListQuery: "list", AggregateQuery: "aggregate", StatsQuery: "stats", TrafficQuery: "traffic"}
_GRACE_SECONDS = 5.0  # after the time of a query, until a store that has reported no timeout counts as down

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one engine, as of a batch. `total_ms` includes the time to find the watermark."""

    reply_name: str
    result: QueryResult
    as_of: int
    total_ms: float


@dataclass(frozen=True, slots=True)
class Stats:
    """The results of one engine by name of dataset, all as of the same batch."""

    reply_name: str
    results: Mapping[str, QueryResult]
    as_of: int
    total_ms: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results by reply name of the engines that returned one, and the reasons why the `missing` engines did not.

    `agree` is None when fewer than two engines returned a result.
    """

    results: Mapping[str, QueryResult]
    digests: Mapping[str, str]
    missing: Mapping[str, str]
    as_of: int
    total_ms: float

    @property
    def agree(self) -> bool | None:
        return len(set(self.digests.values())) == 1 if len(self.digests) > 1 else None


class QueryService:
    """Opens the stores and runs queries on them. `seconds` is the time limit of a query.

    `cache` keeps the results of single stores, except those of queries with `scan`; its owner closes it. `scopes`
    returns the scope of a cached result.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        datasets: Sequence[Dataset],
        watermarks: Watermarks,
        seconds: float = DEFAULT_QUERY_SECONDS,
        cache: ResultCache | None = None,
        scopes: Scopes | None = None,
    ) -> None:
        """`stores`: those that can be read."""
        self._stores = {store.route: OpenedStore.of(store) for store in stores}
        self._datasets = datasets
        self._watermarks = watermarks
        self._seconds = seconds
        self._cache = cache
        self._late: dict[str, Mapping[str, str]] = {}
        self._scopes = scopes

    async def query(
        self,
        route: str,
        query: Query,
        make_reply: Callable[[Reply], Result],
        as_of: int | None = None,
        engine: str | None = None,
        *,
        use_cache: bool = True,
    ) -> Result:
        """Query the store called `route` in URLs, as of its watermark or of an earlier batch.

        `make_reply` makes the return value from the reply, in a thread of the store, because a large reply takes time.
        Raises Invalid, StoreDown, Backpressure or QueryTimeout.
        """
        start, chosen = time.perf_counter(), self._store(route).engine(engine)
        deadline = time.monotonic() + self._seconds

        def work(stop: Stop) -> Result:
            batch = _as_of(as_of, self._watermark(chosen.default_reader, query.dataset))
            result = self._cached(chosen, query, batch, deadline, stop, use_cache=use_cache)
            return make_reply(Reply(chosen.reply_name, result, batch, _ms_since(start)))

        return await chosen.threads.run(work, self._seconds, _GRACE_SECONDS)

    async def stats(
        self,
        route: str,
        as_of: int | None = None,
        engine: str | None = None,
        *,
        scan: bool = False,
        use_cache: bool = True,
    ) -> Stats:
        """Count the rows of each dataset in one store. Raises as `query` does."""
        start, chosen = time.perf_counter(), self._store(route).engine(engine)
        deadline = time.monotonic() + self._seconds

        def work(stop: Stop) -> Stats:
            batch = _as_of(as_of, min(self._watermark(chosen.default_reader, dataset) for dataset in self._datasets))
            results = {
                each.name: self._cached(chosen, StatsQuery(each, scan), batch, deadline, stop, use_cache=use_cache)
                for each in self._datasets
            }
            return Stats(chosen.reply_name, results, batch, _ms_since(start))

        return await chosen.threads.run(work, self._seconds, _GRACE_SECONDS)

    async def compare(self, query: Query, as_of: int | None = None, *, all_engines: bool = False) -> Comparison:
        """Query all stores at once, as of the lowest of their watermarks or of an earlier batch.

        Raises Invalid, or StoreDown when no store returns a result.
        """
        start = time.perf_counter()
        stores = self._stores.values()
        watermarks, unreachable = await self._run_on_each(
            [store.default for store in stores],
            lambda engine, stop: self._watermark(engine.default_reader, query.dataset),
        )
        chosen = [e for s in stores for e in (s.engines if all_engines else (s.default,))]
        failed: dict[str, LogpipeError] = {
            e.reply_name: unreachable[e.store.reply_name] for e in chosen if e.store.reply_name in unreachable
        }
        while True:
            batch = _as_of(as_of, min(watermarks.values(), default=0)) if watermarks else 0
            reachable = [engine for engine in chosen if engine.store.reply_name in watermarks]
            deadline = time.monotonic() + self._seconds
            found, failures = await self._run_on_each(
                reachable, partial(self._digested, query=query, as_of=batch, deadline=deadline)
            )
            failed.update(failures)
            dropped = {e.store.reply_name for e in chosen if isinstance(failures.get(e.reply_name), StoreDown)}
            dropped -= {e.store.reply_name for e in chosen if e.reply_name in found}
            watermarks = {name: watermark for name, watermark in watermarks.items() if name not in dropped}
            # If only a store that failed has so low a watermark, the others are queried again as of a later batch.
            if as_of is not None or min(watermarks.values(), default=batch) == batch:
                break
        missing = {name: str(error) for name, error in failed.items() if name not in found}
        if not found:
            if all(isinstance(error, QueryTimeout) for error in failed.values()):
                raise QueryTimeout("every store", self._seconds)
            raise StoreDown("every store", "; ".join(missing.values()))
        results = {name: result for name, (result, _) in found.items()}
        digests = {name: hashed for name, (_, hashed) in found.items()}
        return Comparison(results, digests, missing, batch, _ms_since(start))

    async def latest(self, dataset: Dataset, route: str | None = None) -> int:
        """Return the watermark of the store `route`, or the lowest of all stores that are reachable.

        Raises as `query` does.
        """
        stores = self._stores.values() if route is None else [self._store(route)]
        watermarks, failed = await self._run_on_each(
            [store.default for store in stores], lambda engine, stop: self._watermark(engine.default_reader, dataset)
        )
        if not watermarks:
            raise StoreDown(route or "every store", "; ".join(sorted(map(str, failed.values()))))
        return min(watermarks.values())

    def require_store(self, route: str) -> None:
        """Raise Invalid, naming the stores that exist, unless this is one."""
        self._store(route)

    @property
    def stores(self) -> Sequence[Store]:
        """The stores that can be queried. The ledger's own store, which is never behind, comes first."""
        opened = sorted(self._stores.values(), key=lambda each: each.default.default_reader.progress != "ledger")
        return tuple(each.store for each in opened)

    @property
    def routes(self) -> Sequence[str]:
        """The stores, as URLs call them."""
        return tuple(self._stores)

    def measure(self, route: str, late_seconds: float) -> None:
        """Set the gauges of one store's watermark and lag. Those of an unreachable store keep their last values.

        A store is late when its oldest batch above the watermark is older than `late_seconds`. Blocks.
        """
        reader, late = self._stores[route].default.default_reader, dict[str, str]()
        for dataset in self._datasets:
            name = f"{reader.name}/{dataset.name}"
            try:
                watermark = self._watermarks.of(reader, dataset)
                lag = self._watermarks.lag(dataset, watermark)
            except LogpipeError as error:
                late[name] = str(error)
                continue
            metrics.gauge(metric_names.WATERMARK_BATCH, reader.name, dataset.name).set(watermark)
            metrics.gauge(metric_names.WATERMARK_LAG_BATCHES, reader.name, dataset.name).set(lag.batches)
            metrics.gauge(metric_names.WATERMARK_LAG_SECONDS, reader.name, dataset.name).set(lag.seconds)
            if lag.seconds > late_seconds:
                late[name] = f"{lag.seconds:.0f} s behind: see /readyz of the process that fills the store"
        self._late[route] = late

    def late(self) -> str | None:
        """Return the stores that were late or unreachable when they were last measured, each with its reason."""
        measured = [self._late.get(route, {}) for route in self._stores]
        return "; ".join(f"{name}: {reason}" for late in measured for name, reason in late.items()) or None

    def close(self) -> None:
        for store in self._stores.values():
            for engine in store.engines:
                engine.close()

    def _store(self, route: str) -> OpenedStore:
        if route not in self._stores:
            raise Invalid(f"unknown store {route!r}; there are: {', '.join(self._stores)}")
        return self._stores[route]

    def _watermark(self, reader: StoreReader, dataset: Dataset) -> int:
        try:
            return self._watermarks.of(reader, dataset)
        except StoreDown as error:
            # Without the ledger the other stores still return results, as of their last known watermark.
            known = self._watermarks.last_known(reader, dataset)
            if error.store == reader.name or not known:
                raise
            return known

    def _cached(
        self, engine: Engine, query: Query, as_of: int, deadline: float, stop: Stop, *, use_cache: bool
    ) -> QueryResult:
        execute = partial(self._execute, engine, stop, query, as_of, deadline)
        if self._cache is None or self._scopes is None or query.scan or not use_cache:
            return execute()
        if (scope := self._scopes.of(engine.default_reader, query.dataset)) is None:
            return execute()
        return self._cache.result(engine.name, scope, query, as_of, execute)

    def _execute(self, engine: Engine, stop: Stop, query: Query, as_of: int, deadline: float) -> QueryResult:
        reader = engine.reader()
        if (left := deadline - time.monotonic()) <= 0:
            raise QueryTimeout(engine.name, self._seconds)
        result = reader.execute(query, as_of, left, stop)
        metrics.histogram(metric_names.QUERY_SECONDS, engine.name, query.dataset.name, _KINDS[type(query)]).observe(
            result.elapsed_ms / 1e3
        )
        return result

    def _digested(
        self, engine: Engine, stop: Stop, query: Query, as_of: int, deadline: float
    ) -> tuple[QueryResult, str]:
        result = self._execute(engine, stop, query, as_of, deadline)
        return result, digest(result)

    async def _run_on_each(
        self, engines: Iterable[Engine], work: Callable[[Engine, Stop], Result]
    ) -> tuple[dict[str, Result], dict[str, LogpipeError]]:
        """Run `work` for all engines at once. Return the results by reply name, and the errors of stores that failed.

        A store fails when it is down, overloaded or too slow. Raises any other error.
        """
        results: dict[str, Result] = {}
        failures: dict[str, LogpipeError] = {}

        async def run(engine: Engine) -> None:
            try:
                results[engine.reply_name] = await engine.threads.run(
                    partial(work, engine), self._seconds, _GRACE_SECONDS
                )
            except (StoreDown, Backpressure, QueryTimeout) as error:
                failures[engine.reply_name] = error

        raised = await asyncio.gather(*map(run, engines), return_exceptions=True)
        for error in filter(None, raised):
            raise error
        return results, failures


def _as_of(wanted: int | None, latest: int) -> int:
    """Return the batch as of which a query runs. Raises Invalid when the wanted batch is not loaded yet."""
    if wanted is not None and wanted > latest:
        raise Invalid(f"as_of: {wanted} is not reached yet, the latest is {latest}")
    return latest if wanted is None else wanted


def digest(result: QueryResult) -> str:
    """Return a hash that is equal for equal rows in equal order and equal totals."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode([result.rows, result.total]))


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
