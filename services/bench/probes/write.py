"""Measures writing: rows at one rate, from the intended time of each request until every store returns its rows.

The rows of a trial carry the trial's tag in their column host, so that they are told from all other rows.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import httpx
import msgspec

from services import datasets
from services.bench.evidence.records import Pace, Table, Tables, Trial, made
from services.bench.plan.cells import Cell
from services.bench.plan.contenders import Contender, contenders
from services.bench.plan.schema import Plan
from services.bench.probes.pacing import open_loop
from services.bench.probes.signals import collect
from services.bench.probes.tables import append, empty, microseconds
from services.bench.target.urls import Target
from services.core.errors import LogpipeError
from services.generator import invention
from services.generator.fates import settle
from services.generator.rules import Numbered
from services.generator.synthesis import Synthesizer
from services.ingest_client.client import IngestClient

POLL_SECONDS = 0.25
"""How often each store is asked for its newest batch: freshness is exact to this, and never too small."""

_PATIENCE = 60.0  # seconds that a request is repeated before its rows count as refused or indeterminate
_HOSTS = 3
_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Offer:
    """Rows to write. `rate`: rows a minute. `tag`: begins the column host of each row."""

    rate: float
    seconds: float
    request_rows: int
    tag: str
    seed: int

    @property
    def interval(self) -> float:
        return self.request_rows * _MINUTE / self.rate

    @property
    def requests(self) -> int:
        return max(1, round(self.seconds / self.interval))


@dataclass(slots=True)
class Written:
    """What became of an offer. `start_us`: of the first intended request, on the clock of the rows' times."""

    writes: Table
    polls: Table
    pace: Pace
    started: datetime
    start_us: int
    drained: dict[str, float | None]


def bases(plan: Plan) -> dict[str, Contender]:
    """Return the stores of the plan, each once, whatever engines it names. Rows are counted by the default engine."""
    known = contenders()
    return {name: known[name] for name in dict.fromkeys(each.partition(":")[0] for each in plan.stores)}


def measure(target: Target, plan: Plan, cell: Cell, repeat: int, number: int, offer: Offer) -> tuple[Trial, Tables]:
    """Offer the rows after a warm-up at the same rate, and count what each store holds of them."""
    assert plan.write is not None
    if plan.write.warm_up_seconds:
        warm_up = replace(offer, seconds=plan.write.warm_up_seconds, tag=f"{offer.tag}-warm-up", seed=offer.seed + 1)
        asyncio.run(write(target, plan, warm_up, drain=False))
    before = Used(target)
    done = asyncio.run(write(target, plan, offer))
    return finished(target, plan, cell, repeat, number, offer, done, before)


class Used:
    """What the components of a target have used when this is made."""

    def __init__(self, target: Target) -> None:
        self.cpu, self.disk = target.cpu(), target.disk()


def finished(
    target: Target, plan: Plan, cell: Cell, repeat: int, number: int, offer: Offer, done: Written, before: Used
) -> tuple[Trial, Tables]:
    """Return the trial of an offer, with what the components used since `before`, and its signals."""
    trial = made(number, cell, repeat, done.started, offer.interval * done.pace.scheduled, done.pace)
    after = Used(target)
    whole = msgspec.structs.replace(
        trial,
        stored={name: _stored(target, plan, each, done, offer.tag) for name, each in bases(plan).items()},
        drained=done.drained,
        cpu={name: round(seconds - before.cpu[name], 3) for name, seconds in after.cpu.items() if name in before.cpu},
        disk={name: size - before.disk[name] for name, size in after.disk.items() if name in before.disk},
    )
    signals = collect(target, done.started, trial.seconds)
    return whole, {"writes": done.writes, "polls": done.polls, "signals": signals}


async def write(target: Target, plan: Plan, offer: Offer, *, drain: bool = True) -> Written:
    """Send the rows; with `drain`, return when every store has them or the limit of the plan has passed."""
    dataset = datasets.find(plan.dataset)
    rules = invention.rules_of(dataset) | {"host": Numbered(1, _HOSTS, prefix=f"{offer.tag}-")}
    writes = empty("due", "response", "rows", "bytes", "outcome", "batch", "problem")
    async with IngestClient(target.ingest_url, target.token, patience=_PATIENCE) as client, target.query() as reader:
        started, start_us, start = datetime.now(UTC), time.time_ns() // 1000, time.monotonic()
        step = offer.interval * 1e6 / offer.request_rows
        table = Synthesizer(dataset, offer.seed, start_us - round(offer.interval * 1e6), step, rules)
        namespace = uuid.uuid5(uuid.NAMESPACE_OID, f"{offer.tag}/{offer.seed}/{start_us}")

        async def send(request: int, due: float) -> None:
            body = await asyncio.to_thread(table.ndjson, request * offer.request_rows, offer.request_rows)
            outcome = await settle(client, dataset, body, str(uuid.uuid5(namespace, str(request))))
            response = microseconds(time.monotonic() - due)
            append(
                writes,
                *(microseconds(due - start), response, offer.request_rows, len(body)),
                *(outcome.fate, outcome.batch_id, outcome.detail),
            )

        async with _polled(reader, plan, start) as polls:
            pace = await open_loop(offer.requests, offer.interval, plan.limits.in_flight, send)
            replied = time.monotonic() - start
            last = max(writes["batch"], default=0)
            if drain:
                await polls.drained(bases(plan), last, plan.limits.drain_seconds)
    waited = {name: polls.reached(name, last) for name in bases(plan)}
    drained = {name: None if at is None else round(max(0.0, at - replied), 3) for name, at in waited.items()}
    return Written(writes, polls.table, pace, started, start_us, drained)


class _Polls:
    """The newest batch of each store, and when it was seen."""

    def __init__(self, start: float) -> None:
        self.table = empty("store", "at", "as_of")
        self._start = start
        self._news = asyncio.Event()

    def add(self, store: str, as_of: int) -> None:
        append(self.table, store, microseconds(time.monotonic() - self._start), as_of)
        self._news.set()

    def reached(self, store: str, batch: int) -> float | None:
        """Return the seconds at which a query of the store first read as of this batch."""
        rows = zip(self.table["store"], self.table["at"], self.table["as_of"], strict=True)
        return next((at / 1e6 for name, at, as_of in rows if name == store and as_of >= batch), None)

    async def drained(self, stores: Iterable[str], batch: int, seconds: float) -> None:
        """Wait until all stores have reached the batch, at most so long."""
        names = list(stores)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(self.reached(name, batch) is None for name in names):
                    self._news.clear()
                    await self._news.wait()


@asynccontextmanager
async def _polled(reader: httpx.AsyncClient, plan: Plan, start: float) -> AsyncIterator[_Polls]:
    """Query each store for its newest batch while the block runs."""
    polls = _Polls(start)

    async def poll(name: str, contender: Contender) -> None:
        parameters = {"limit": "1", "count": "none", "method": "scan", "cache": "off"}
        while True:
            began = time.monotonic()
            # A store that does not answer shows no row: its rows become visible later.
            with suppress(httpx.HTTPError):
                reply = await reader.get(f"/{contender.route}/{plan.dataset}", params=parameters)
                if reply.status_code == 200:
                    polls.add(name, reply.json()["as_of"])
            await asyncio.sleep(max(0.0, began + POLL_SECONDS - time.monotonic()))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(poll(name, each)) for name, each in bases(plan).items()]
        try:
            yield polls
        finally:
            for task in tasks:
                task.cancel()


def _stored(target: Target, plan: Plan, contender: Contender, done: Written, tag: str) -> int:
    """Return how many rows of the offer the store returns to a query; -1 if it does not answer."""
    second = 1_000_000
    last = done.start_us + max(done.writes["due"], default=0)
    between = {"start_time": done.start_us - _MINUTE * second, "end_time": last + _MINUTE * second}
    parameters = {name: f"{value / second:.6f}" for name, value in between.items()}
    try:
        body = target.get(
            f"{contender.route}/{plan.dataset}/aggregate",
            {**parameters, "group_by": "host", "method": "scan", "cache": "off"},
        )
    except LogpipeError:
        return -1
    hosts = {f"{tag}-{number}" for number in range(1, _HOSTS + 1)}
    return sum(group["count"] for group in body["data"] if group["key"] in hosts)
