"""How many rows a minute the whole pipeline holds, how fast it answers at half of that, and how fresh its stores are.

A rate is held when every row was acknowledged, the generator kept its schedule, all stores had everything within 30 s
of the last row, and `verify` found no row lost or doubled.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services import datasets, stores
from services.bench.cases.figures import Figure
from services.generator.load import Load, Report
from services.ingest_client.client import IngestClient
from services.local import freshness
from services.local.settings import LakeWriter, LocalSettings
from services.local.stack import Stack
from services.local.verification import verify
from services.stores import clickhouse, lake, postgres

_DRAIN_SECONDS = 30.0
_BEHIND_MS = 1000.0  # a generator later than this did not offer the rate it says
_EVENT_SHARE = 0.1
_LATENCY_RATE = 15_000  # rows/s: half the floor of the sustained rate
_SETTLE = 60.0  # seconds of a first load that is not counted: JIT compilers, first files, empty caches

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Bars:
    """Floors and goals that depend on who writes the lake."""

    rate: tuple[int, int]  # rows/min
    lake: tuple[float, float]  # seconds


_BARS: Mapping[LakeWriter, _Bars] = {
    "spark": _Bars((1_800_000, 3_600_000), (60, 20)),
    "embedded": _Bars((3_600_000, 7_200_000), (10, 5)),
}


def measure(folder: Path, writer: LakeWriter, rates: list[int], seconds: int, say: Say) -> list[Figure]:
    """Rates in rows/s, rising; stops at the first that is not held."""
    settings = LocalSettings.on_free_ports(folder).model_copy(update={"lake_writer": writer})
    with Stack(settings) as stack:
        say("warming up")
        _offer(stack, rates[0] // 2, _SETTLE)
        verify(stack.settings, 300)
        latency, fresh = _latency(stack, writer, seconds, say)
        held, notes = 0.0, []
        for rate in rates:
            logs, _ = _offer(stack, rate, seconds)
            drain = time.monotonic()
            report = verify(stack.settings, 300)
            drained = time.monotonic() - drain
            problem = _problem(logs, report, drained)
            notes.append(
                f"{rate * 60:,} rows/min for {seconds} s: {problem or 'held'}; drained and verified {drained:.1f} s"
                f" after the last row, generator at most {logs.max_behind_ms:,.0f} ms late"
            )
            say(notes[-1])
            if problem:
                break
            held = rate * 60.0
        checked = verify(stack.settings, 300, "--all")
        rows = sum(result["expected"] for result in checked["results"] if result["store"] == postgres.STORE.name)
        notes.append(
            f"checksums of all {rows:,} rows in every store afterwards: {'equal' if checked['ok'] else checked}"
        )
    return [
        Figure(f"sustained, lake by {writer}", "rows/min", [held], *_BARS[writer].rate, notes=notes),
        latency,
        *fresh,
    ]


def _latency(stack: Stack, writer: LakeWriter, seconds: int, say: Say) -> tuple[Figure, list[Figure]]:
    """Return the latency of the replies, and the time until the rows are in the stores."""
    values = []
    seen: dict[str, list[float]] = {name: [] for name in stores.writers()}
    for run in range(3):
        with httpx.Client(timeout=60, trust_env=False) as client:
            before = freshness.read(client, stack.settings)
            logs, _ = _offer(stack, _LATENCY_RATE, seconds / 2)
            verify(stack.settings, 300)
            after = freshness.read(client, stack.settings)
        values.append(logs.p99_ms)
        for store, quantiles in seen.items():
            quantiles.append(after[store].since(before[store]).quantile(0.99) or 0.0)
        say(
            f"run {run + 1}: p50 {logs.p50_ms} ms, p99 {logs.p99_ms} ms at {_LATENCY_RATE:,} rows/s; visible after"
            f" (p99): {', '.join(f'{store} {quantiles[-1]:.1f} s' for store, quantiles in seen.items())}"
        )
    notes = [
        f"{_LATENCY_RATE * 60:,} rows/min in 1,000-row requests, all stores loading; from the time a request was due"
    ]
    return Figure("ingest p99", "ms", values, 100, 30, better="less", notes=notes), [
        Figure(f"freshness p99, {clickhouse.STORE.label}", "s", seen[clickhouse.STORE.name], 5, 2, better="less"),
        Figure(
            f"freshness p99, {lake.STORE.label} by {writer}",
            "s",
            seen[lake.STORE.name],
            *_BARS[writer].lake,
            better="less",
        ),
    ]


def _offer(stack: Stack, rate: int, seconds: float) -> tuple[Report, Report]:
    async def both() -> tuple[Report, Report]:
        async with IngestClient(f"http://127.0.0.1:{stack.settings.ingest_port}") as client:
            logs = Load.at_rate(client, datasets.find("logs"), rate * (1 - _EVENT_SHARE), seconds)
            events = Load.at_rate(client, datasets.find("events"), rate * _EVENT_SHARE, seconds)
            return await asyncio.gather(logs.run(), events.run())

    return asyncio.run(both())


def _problem(load: Report, report: dict[str, Any], drained: float) -> str:
    if load.refused or load.indeterminate:
        return f"{load.refused} rows refused, {load.indeterminate} indeterminate: {load.problem}"
    if load.max_behind_ms > _BEHIND_MS:
        return f"the generator ran {load.max_behind_ms:,.0f} ms late"
    if not report["ok"]:
        return f"verify: {report['results']} {report['unchecked']}"
    if drained > _DRAIN_SECONDS:
        return f"not drained within {_DRAIN_SECONDS:.0f} s"
    return ""
