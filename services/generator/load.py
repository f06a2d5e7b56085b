"""A load: seeded rows of one dataset, sent by an open-loop schedule, and the fates of these rows.

A latency is measured from the time at which the request was due, and not from the time at which it was sent, so that
the delay of requests that wait behind a stalled server is counted. Requests in flight are bounded: at the bound the
schedule waits, and `behind()` returns its delay.
"""

import asyncio
import itertools
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Self

from services.core import metric_names
from services.core.dataset import Dataset
from services.generator import invention
from services.generator.fates import Fate, settle
from services.generator.schedule import Schedule
from services.generator.synthesis import Synthesizer, seed_or_clock
from services.ingest_client.client import IngestClient
from services.runtime import metrics

MAX_REQUESTS = 32  # in flight
MAX_ROWS = 100_000  # in flight, but always at least one request
_LATENCIES = 100_000  # the newest are kept
_MICROSECONDS = 1_000_000


@dataclass(slots=True)
class Tally:
    """Rows by fate."""

    acked: int = 0
    refused: int = 0
    indeterminate: int = 0
    problem: str = ""  # the newest error

    def add(self, fate: Fate, rows: int, problem: str = "") -> None:
        match fate:
            case "acked":
                self.acked += rows
            case "refused":
                self.refused += rows
            case "indeterminate":
                self.indeterminate += rows
        self.problem = problem or self.problem

    @property
    def errors(self) -> int:
        return self.refused + self.indeterminate


@dataclass(frozen=True, slots=True)
class Report:
    dataset: str
    seed: int
    seconds: float
    acked: int
    refused: int
    indeterminate: int
    p50_ms: float
    p99_ms: float
    max_behind_ms: float
    problem: str


class Load:
    """Sends `request_rows` rows each `interval` seconds (0: as fast as ingest replies), `rows` in all or until stopped.

    With `history`, the times of the rows are in the last `history` seconds, in the rhythm of the dataset; else they
    follow the schedule. The schedule starts when the load is made. `tally` and `behind()` may be read at any time, on
    the event loop.
    """

    def __init__(
        self,
        client: IngestClient,
        dataset: Dataset,
        request_rows: int,
        interval: float,
        rows: int | None = None,
        seed: int = 0,
        history: float = 0.0,
    ) -> None:
        self.dataset = dataset
        self.seed = seed_or_clock(seed)
        self.tally = Tally()
        self._client = client
        self._request_rows = request_rows
        self._rows = rows
        rhythm, end_us = None, time.time_ns() // 1000
        if history and rows:
            rhythm = invention.rhythm_of(dataset)
            start_us = end_us - round(history * _MICROSECONDS)
            span = rhythm.progress(end_us) - rhythm.progress(start_us) if rhythm else end_us - start_us
            step_us = span / rows
        else:  # a request carries the rows of the interval that ends when it is due
            start_us = end_us - round(interval * _MICROSECONDS)
            step_us = max(1.0, interval * _MICROSECONDS / request_rows)
        self._table = Synthesizer(dataset, self.seed, start_us, step_us, rhythm=rhythm)
        self._namespace = uuid.uuid5(uuid.NAMESPACE_OID, f"{dataset.name}/{self.seed}/{start_us}/{step_us}")
        self._schedule = Schedule(interval)
        self._pacing: asyncio.Task[None] | None = None
        self._stopped = False
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._max_behind = 0.0

    @classmethod
    def at_rate(
        cls,
        client: IngestClient,
        dataset: Dataset,
        rate: float,
        seconds: float,
        request_rows: int = 1000,
        seed: int = 0,
    ) -> Self:
        """`rate` rows a second for `seconds`."""
        return cls(client, dataset, request_rows, request_rows / rate, round(rate * seconds), seed)

    async def run(self) -> Report:
        """Send; returns once everything is sent or `stop` was called, and the fate of each row is settled."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            self._pacing = group.create_task(self._pace(group))
            if self._stopped:
                self._pacing.cancel()
        return self._report(time.monotonic() - started)

    def stop(self) -> None:
        """Send no more requests; `run` returns when the requests in flight are settled."""
        self._stopped = True
        if self._pacing is not None:
            self._pacing.cancel()

    def behind(self) -> float:
        """Seconds by which the next request is late; 0 when nothing runs."""
        pacing = self._pacing is not None and not self._pacing.done()
        return self._schedule.behind() if pacing else 0.0

    async def _pace(self, group: asyncio.TaskGroup) -> None:
        slots = asyncio.Semaphore(max(1, min(MAX_REQUESTS, MAX_ROWS // self._request_rows)))
        for first in itertools.count(0, self._request_rows):
            rows = self._request_rows if self._rows is None else min(self._request_rows, self._rows - first)
            if rows <= 0:
                return
            await asyncio.sleep(self._schedule.wait())
            await slots.acquire()
            self._max_behind = max(self._max_behind, self._schedule.behind())
            group.create_task(self._send(first, rows, self._schedule.take(), slots))

    async def _send(self, first: int, rows: int, due: float, slots: asyncio.Semaphore) -> None:
        fate: Fate = "indeterminate"  # when this task is cancelled before the reply
        problem = "cancelled"
        try:
            body = await asyncio.to_thread(self._table.ndjson, first, rows)
            key = str(uuid.uuid5(self._namespace, str(first)))
            outcome = await settle(self._client, self.dataset, body, key)
            fate, problem = outcome.fate, outcome.detail
            self._latencies.append(time.monotonic() - due)
        finally:
            slots.release()
            self.tally.add(fate, rows, problem)
            metrics.counter(metric_names.GENERATOR_ROWS, self.dataset.name, fate).inc(rows)

    def _report(self, seconds: float) -> Report:
        ordered = sorted(self._latencies)
        p50, p99 = (ordered[int(len(ordered) * q)] if ordered else 0.0 for q in (0.5, 0.99))
        tally = self.tally
        return Report(
            self.dataset.name,
            self.seed,
            round(seconds, 3),
            tally.acked,
            tally.refused,
            tally.indeterminate,
            round(p50 * 1000, 2),
            round(p99 * 1000, 2),
            round(self._max_behind * 1000, 2),
            tally.problem,
        )
