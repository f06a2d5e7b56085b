"""A stack for tests of the benchmarks: ingest API and query API in this process, with planted faults."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aiohttp import web

from services.bench.target.settings import BenchSettings
from services.bench.target.urls import Target
from services.core.instants import of_bound

ROUTES = ("postgres", "clickhouse", "hdfs")


@dataclass(slots=True)
class Faults:
    """Each is a set of routes, or of rows by route. `delay`: seconds that a query takes."""

    lost: dict[str, int] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)
    differing: set[str] = field(default_factory=set)
    cached: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    delay: dict[str, float] = field(default_factory=dict)
    refusing: bool = False


class FakeStack:
    """Holds rows in memory. Thread-safe for one thread that changes `faults` between requests."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.batch = 0
        self.rows: dict[str, list[dict[str, Any]]] = {route: [] for route in ROUTES}
        self.queries: list[Mapping[str, str]] = []
        self.url = ""

    @cached_property
    def target(self) -> Target:
        return Target(BenchSettings(ingest_url=self.url, query_url=self.url))

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.add_routes(
            [
                web.get("/health", _well),
                web.get("/api/collect/health", _well),
                web.post("/api/collect/bench-logs", self._collect),
                web.get("/api/query/{route}/stats", self._stats),
                web.get("/api/query/{route}/bench_logs", self._list),
                web.get("/api/query/{route}/bench_logs/aggregate", self._aggregate),
            ]
        )
        return app

    async def _collect(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.faults.refusing:
            return web.json_response({"title": "Invalid request", "detail": "planted"}, status=422)
        self.batch += 1
        rows = [{**json.loads(line), "id": self.batch << 17 | number} for number, line in enumerate(body.splitlines())]
        for route, held in self.rows.items():
            lost, doubled = self.faults.lost.pop(route, 0), self.faults.doubled.pop(route, 0)
            held += rows[lost:] + rows[:doubled]
        return web.json_response({"status": "accepted", "batch_id": self.batch, "duplicate": False})

    async def _stats(self, request: web.Request) -> web.StreamResponse:
        return await self._reply(request, lambda rows: {"bench_logs_count": len(rows)})

    async def _list(self, request: web.Request) -> web.StreamResponse:
        limit = int(request.query.get("limit", 100))
        return await self._reply(request, lambda rows: {"data": rows[-limit:]})

    async def _aggregate(self, request: web.Request) -> web.StreamResponse:
        key = request.query.get("group_by", "level")
        bounds = [of_bound(request.query[name]) / 1e6 if name in request.query else None for name in _BOUNDS]

        def counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
            held = [row for row in rows if _within(row, bounds)]
            return {"data": [{"key": key, "count": count} for key, count in Counter(row[key] for row in held).items()]}

        return await self._reply(request, counted)

    async def _reply(self, request: web.Request, answer: Any) -> web.StreamResponse:
        route, faults = request.match_info["route"], self.faults
        self.queries.append(dict(request.query))
        if delay := faults.delay.get(route):
            await asyncio.sleep(delay)
        if route in faults.failing:
            return web.json_response({"detail": "planted"}, status=503)
        rows = self.rows[route]
        if route in faults.differing and "group_by" in request.query and request.query["group_by"] != "host":
            rows = rows[:-1]
        cached = route in faults.cached and request.query.get("limit") != "1"
        return web.json_response(
            {
                **answer(rows),
                "query_time_ms": 1.0,
                "as_of": 0 if route in faults.stuck else self.batch,
                "method": "cache" if cached or request.query.get("cache") == "on" else "scan",
                "scanned": {},
            }
        )


_BOUNDS = ("start_time", "end_time")


def _within(row: Mapping[str, Any], bounds: list[float | None]) -> bool:
    at, (start, end) = of_bound(row["timestamp"]) / 1e6, bounds
    return (start is None or at >= start) and (end is None or at < end)


async def _well(_: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "UP"})


@contextmanager
def fake_stack() -> Iterator[FakeStack]:
    """Serve a new stack by a thread of its own."""
    stack, loop, started = FakeStack(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> web.AppRunner:
        runner = web.AppRunner(stack.application())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        stack.url = f"http://{host}:{port}"
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(serve())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10), time.monotonic()
    try:
        yield stack
    finally:
        stack.target.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
