"""Measures one query of one store."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import xxhash

from services.bench.evidence.records import Tables, Trial, made
from services.bench.plan.cells import ReadCell
from services.bench.plan.contenders import contenders
from services.bench.plan.queries import QUERIES
from services.bench.plan.schema import Method, Plan
from services.bench.probes.pacing import open_loop
from services.bench.probes.tables import append, empty, microseconds
from services.bench.target.urls import Target
from services.core.errors import StoreDown

_ASKED: dict[Method, dict[str, str]] = {
    "scan": {"method": "scan", "cache": "off"},
    "kept": {"method": "auto", "cache": "off"},
    "cache": {"method": "auto", "cache": "on"},
}
_IDLE = 2.0  # the interval of queries that are alone, in times of the slowest one of the warm-up
_SHORTEST = 0.005  # seconds between two of them


class Reads:
    """The samples of one query, and how one is taken."""

    def __init__(
        self, client: httpx.AsyncClient, plan: Plan, store: str, query: str, method: Method, as_of: int | None
    ) -> None:
        """`as_of`: a batch that every store has loaded, so that all must return the same result; None: the latest."""
        contender, self._query, self._dataset = contenders()[store], QUERIES[query], plan.dataset
        self._client = client
        self._path = f"/{contender.route}/{self._query.path.format(dataset=plan.dataset)}"
        self._parameters = {
            **self._query.parameters,
            **contender.parameters,
            **_ASKED[method],
            **({} if as_of is None else {"as_of": str(as_of)}),
        }
        self.reads = empty("due", "response", "store", "method", "digest", "problem")
        self.files = empty("files", "files_total")

    async def take(self, due: float, start: float) -> None:
        """Send the query, which was due at `due`, and keep the sample. `start`: from which `due` is counted."""
        try:
            reply = await self._client.get(self._path, params=self._parameters)
            response = time.monotonic() - due
            body: dict[str, Any] = msgspec.json.decode(reply.content)
            if reply.status_code != 200:
                raise StoreDown("query API", f"{reply.status_code} {body.get('detail', '')}")
            digest = xxhash.xxh3_64_hexdigest(msgspec.json.encode(self._query.result(body, self._dataset)))
            taken = (microseconds(body["query_time_ms"] / 1e3), body["method"], digest, "")
            scanned = body["scanned"].get(self._dataset, body["scanned"])
        except (httpx.HTTPError, msgspec.MsgspecError, KeyError, StoreDown) as error:
            response = time.monotonic() - due
            taken, scanned = (0, "", "", str(error) or type(error).__name__), {}
        append(self.reads, microseconds(due - start), microseconds(response), *taken)
        append(self.files, scanned.get("files", 0), scanned.get("files_total", 0))


def measure(target: Target, plan: Plan, cell: ReadCell, repeat: int, number: int, as_of: int) -> tuple[Trial, Tables]:
    return asyncio.run(_measure(target, plan, cell, repeat, number, as_of))


async def _measure(
    target: Target, plan: Plan, cell: ReadCell, repeat: int, number: int, as_of: int
) -> tuple[Trial, Tables]:
    assert plan.read is not None
    async with target.query() as client:
        warm_up = Reads(client, plan, cell.store, cell.query, cell.method, as_of)
        for _ in range(plan.read.warm_up):
            now = time.monotonic()
            await warm_up.take(now, now)
        slowest = max(warm_up.reads["response"]) / 1e6
        interval = 1 / cell.rate if cell.rate else max(_SHORTEST, _IDLE * slowest)
        started, start = datetime.now(UTC), time.monotonic()
        measured = Reads(client, plan, cell.store, cell.query, cell.method, as_of)
        pace = await open_loop(
            plan.read.samples, interval, plan.limits.in_flight, lambda _, due: measured.take(due, start)
        )
    tables = {"reads": measured.reads, "files": measured.files}
    return made(number, cell, repeat, started, interval * pace.scheduled, pace), tables
