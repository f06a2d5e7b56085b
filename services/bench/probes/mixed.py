"""Measures reads while rows come in, and rows while a component is killed."""

import asyncio
import time

import msgspec

from services.bench.evidence.records import Pace, Tables, Trial
from services.bench.plan.cells import FaultCell, MixedCell
from services.bench.plan.schema import Plan
from services.bench.probes.pacing import open_loop
from services.bench.probes.read import Reads
from services.bench.probes.tables import microseconds
from services.bench.probes.write import Offer, Used, Written, finished, write
from services.bench.target.urls import Target

LEAD_SECONDS = 5.0
"""The load begins so long before the first query, and ends after the last one."""


def measure_mixed(
    target: Target, plan: Plan, cell: MixedCell, repeat: int, number: int, offer: Offer
) -> tuple[Trial, Tables]:
    before = Used(target)
    done, reads, pace = asyncio.run(_mixed(target, plan, cell, offer))
    trial, tables = finished(target, plan, cell, repeat, number, offer, done, before)
    return msgspec.structs.replace(trial, pace=_both(trial.pace, pace)), {
        **tables,
        "reads": reads.reads,
        "files": reads.files,
    }


def _both(one: Pace, other: Pace) -> Pace:
    return Pace(
        one.scheduled + other.scheduled,
        one.sent + other.sent,
        one.dropped + other.dropped,
        max(one.late_ms, other.late_ms),
    )


async def _mixed(target: Target, plan: Plan, cell: MixedCell, offer: Offer) -> tuple[Written, Reads, Pace]:
    assert plan.mixed is not None
    async with target.query() as client, asyncio.TaskGroup() as group:
        writing = group.create_task(write(target, plan, offer))
        await asyncio.sleep(LEAD_SECONDS)
        start = time.monotonic()
        reads = Reads(client, plan, cell.store, cell.query, "scan", None)
        pace = await open_loop(
            plan.mixed.samples, 1 / plan.mixed.rate, plan.limits.in_flight, lambda _, due: reads.take(due, start)
        )
        return await writing, reads, pace


def measure_fault(
    target: Target, plan: Plan, cell: FaultCell, repeat: int, number: int, offer: Offer
) -> tuple[Trial, Tables]:
    """Kill the component `after_seconds` after the start of the load."""
    before = Used(target)
    try:
        done, killed = asyncio.run(_faulty(target, plan, cell, offer))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    trial, tables = finished(target, plan, cell, repeat, number, offer, done, before)
    return msgspec.structs.replace(trial, fault_at=microseconds(killed)), tables


async def _faulty(target: Target, plan: Plan, cell: FaultCell, offer: Offer) -> tuple[Written, float]:
    assert plan.faults is not None
    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write(target, plan, offer))
        await asyncio.sleep(plan.faults.after_seconds)
        target.kill(cell.component)
        killed = time.monotonic() - start
        return await writing, killed
