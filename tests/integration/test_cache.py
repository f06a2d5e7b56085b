"""The cache over a real Redis, one that becomes unreachable and one that hangs."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from pydantic import SecretStr

from services.core import stores as description
from services.core.dataset import Column, Dataset
from services.core.errors import StoreDown
from services.core.ports import StoreReader
from services.core.queries import AggregateQuery, Filters, ListQuery, Query, QueryResult, StatsQuery
from services.core.stopping import Stop
from services.datasets.logs import DATASET as LOGS
from services.ledger.watermark import Watermarks
from services.local.stack import Stack
from services.postgres.connection import connect
from services.query_api import cache as module
from services.query_api.cache import CacheSettings, ResultCache, open_cache
from services.query_api.scopes import Scopes
from services.query_api.service import QueryService
from services.stores.memory import MemoryStore
from tests.conftest import running
from tests.waiting import until

QUERY = AggregateQuery(LOGS, "level", Filters((("service", "api"),), start=5))


class Counting(MemoryStore):
    """Counts its queries."""

    name = "counting"
    executed = 0

    def execute(self, query: Query, as_of: int, seconds: float = 30.0, stop: Stop | None = None) -> QueryResult:
        self.executed += 1
        return super().execute(query, as_of, seconds)


def described(reader: Counting) -> description.Store:
    return description.Store("counting", "counting", "counting", "counting", open_reader=lambda: reader)


class Settled:
    """In place of Watermarks."""

    def of(self, reader: StoreReader, dataset: Dataset) -> int:
        return 5


class Store:
    """Gives another result each time."""

    def __init__(self) -> None:
        self._count = count(1)

    def ask(self) -> QueryResult:
        row = (next(self._count), -0.0, None, "é\x00\ud7ff", 1 << 52)
        return QueryResult([row, ()], 12.5, "rollup", total=7, scanned={"rows": 3})


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running("redis") as stack:
        yield stack


@pytest.fixture
def url(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 5.0)  # a busy machine must not pass for one without Redis
    return stack.settings.urls()["LOGPIPE_REDIS_URL"]


def test_a_cached_result_is_the_same_but_for_its_method_and_times(url: str) -> None:
    store = Store()
    with closing(ResultCache(url, 60, 10_000)) as cache:
        first = cache.result("same", "scope", QUERY, 9, store.ask)
        assert (first.method, first.rows[0][0]) == ("rollup", 1)
        kept = cache.result("same", "scope", QUERY, 9, store.ask)
    assert 0 < kept.elapsed_ms != first.elapsed_ms
    assert repr(kept) == repr(replace(first, method="cache", elapsed_ms=kept.elapsed_ms, first_ms=12.5))


class OneScope:
    """In place of Scopes; None: it is not known."""

    scope: str | None = "scope"

    def of(self, reader: StoreReader, dataset: Dataset) -> str | None:
        return self.scope


OTHERS: list[tuple[str, Query, int]] = [
    ("postgres_x", QUERY, 9),
    ("postgres", QUERY, 10),
    ("postgres", replace(QUERY, group_by="host"), 9),
    ("postgres", replace(QUERY, bucket=60_000_000), 9),
    ("postgres", replace(QUERY, filters=Filters((("service", "api"),), start=5, text="x")), 9),
    ("postgres", ListQuery(LOGS), 9),
    ("postgres", StatsQuery(LOGS), 9),
    ("postgres", replace(QUERY, dataset=replace(LOGS, columns=(*LOGS.columns, Column("new", "text")))), 9),
]


def test_whatever_differs_has_a_result_of_its_own(url: str) -> None:
    store = Store()
    with closing(ResultCache(url, 60, 10_000)) as cache:
        for engine, query, as_of in [("postgres", QUERY, 9), *OTHERS]:
            assert cache.result(engine, "scope", query, as_of, store.ask).method == "rollup"
        for engine, query, as_of in [("postgres", QUERY, 9), *OTHERS]:
            assert cache.result(engine, "scope", query, as_of, store.ask).method == "cache"


def test_a_result_of_another_ledger_table_or_floor_is_not_returned(url: str) -> None:
    reader, scopes = Counting(), OneScope()
    with closing(ResultCache(url, 60, 10_000)) as cache:
        service = QueryService(
            [described(reader)], [LOGS], cast(Watermarks, Settled()), cache=cache, scopes=cast(Scopes, scopes)
        )

        def method() -> str:
            return asyncio.run(service.query("counting", AggregateQuery(LOGS, "host"), lambda r: r.result.method, 3))

        assert [method(), method()] == ["scan", "cache"]
        scopes.scope = "another"
        assert [method(), method()] == ["scan", "cache"]
        scopes.scope = None
        assert [method(), method()] == ["scan", "scan"]
        service.close()


def test_a_scope_is_read_once_a_second_and_kept_without_the_ledger(postgres_url: str) -> None:
    now = [100.0]
    with connect(postgres_url) as connection, connection.transaction(force_rollback=True):
        reader, ledger = Counting(), MagicMock()
        ledger.connection.return_value.__enter__.return_value = connection
        scopes = Scopes(ledger, lambda: now[0])

        last = [scopes.of(reader, LOGS)]

        def changed() -> bool:
            assert scopes.of(reader, LOGS) == last[0]  # within the second
            now[0] += 1
            before, last[0] = last[0], scopes.of(reader, LOGS)
            return last[0] != before

        assert not changed()
        connection.execute("UPDATE ledger SET id = gen_random_uuid()")
        assert changed()
        connection.execute(
            "INSERT INTO floors (dataset, batch_id) VALUES ('logs', 1 << 30)"
            " ON CONFLICT (dataset) DO UPDATE SET batch_id = excluded.batch_id"
        )
        assert changed()
        reader.table_id = lambda dataset: "created again"  # type: ignore[method-assign]
        assert changed()
        ledger.connection.side_effect = StoreDown("postgres", "down")
        assert not changed()
        assert scopes.of(reader, LOGS) is not None
        assert Scopes(ledger).of(reader, LOGS) is None


def test_large_and_old_results_are_not_kept(url: str) -> None:
    store = Store()
    with closing(ResultCache(url, 60, 20)) as cache:
        assert [cache.result("large", "scope", QUERY, 9, store.ask).method for _ in range(2)] == ["rollup", "rollup"]
    with closing(ResultCache(url, 1, 10_000)) as cache:
        cache.result("old", "scope", QUERY, 9, store.ask)
        until(lambda: cache.result("old", "scope", QUERY, 9, store.ask).method != "cache")


def test_what_another_version_wrote_is_no_result(url: str) -> None:
    store = Store()
    with closing(ResultCache(url, 60, 10_000)) as cache:
        cache.result("version", "scope", QUERY, 9, store.ask)
        for key in cache._redis.scan_iter("logpipe:*"):
            cache._redis.set(key, b"\xc1")
        assert cache.result("version", "scope", QUERY, 9, store.ask).rows[0][0] == 2
        assert cache.result("version", "scope", QUERY, 9, store.ask).method == "cache"


def test_an_unreachable_redis_is_left_alone_and_found_again(stack: Stack, url: str) -> None:
    store, now = Store(), [100.0]
    with closing(ResultCache(url, 60, 10_000, lambda: now[0])) as cache:

        def ask() -> tuple[int, str]:
            result = cache.result("unreachable", "scope", QUERY, 9, store.ask)
            return result.rows[0][0], result.method

        assert [ask(), ask()] == [(1, "rollup"), (1, "cache")]
        stack.supervisor.stop("redis")
        assert ask() == (2, "rollup")
        stack.supervisor.start("redis")
        until(lambda: stack.program("redis").ready() is None)
        assert ask() == (3, "rollup"), "Redis is not tried again so soon"
        now[0] += 5
        assert [ask(), ask()] == [(4, "rollup"), (4, "cache")]


def test_a_redis_that_hangs_costs_next_to_nothing_and_that_once() -> None:
    store = Store()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        closing(ResultCache(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", 60, 10_000)) as cache,
    ):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            assert cache.result("hangs", "scope", QUERY, 9, store.ask).method == "rollup"
            times.append(time.perf_counter() - start)
    assert times[0] >= module._TIMEOUT_SECONDS
    assert sorted(times)[-2] < module._TIMEOUT_SECONDS
    assert sum(times) < 1, "the timeouts of the driver itself are many seconds"
    assert 2 * module._TIMEOUT_SECONDS < 0.05


def test_no_cache_without_a_url(url: str) -> None:
    assert open_cache(CacheSettings(redis_url=None)) is None
    cache = open_cache(CacheSettings(redis_url=SecretStr(url)))
    assert cache is not None
    cache.close()


def test_the_service_leaves_scans_and_comparisons_alone(url: str) -> None:
    reader = Counting()
    with closing(ResultCache(url, 60, 10_000)) as cache:
        service = QueryService(
            [described(reader)], [LOGS], cast(Watermarks, Settled()), cache=cache, scopes=cast(Scopes, OneScope())
        )
        query = StatsQuery(LOGS)

        def executed(**options: Any) -> tuple[str, int]:
            given = {"query": query, "as_of": 3, "make_reply": lambda reply: reply.result.method, **options}
            return asyncio.run(service.query("counting", **given)), reader.executed

        assert executed() == ("scan", 1)
        assert executed() == ("cache", 1)
        assert executed(use_cache=False) == ("scan", 2)
        assert executed(query=StatsQuery(LOGS, scan=True)) == ("scan", 3)
        assert asyncio.run(service.stats("counting", 3)).results["logs"].method == "cache"
        assert asyncio.run(service.stats("counting", 3, use_cache=False)).results["logs"].method == "scan"
        assert asyncio.run(service.compare(query, 3)).results["counting"].method == "scan"
        service.close()
