"""The open-loop schedule of all probes."""

import asyncio
from collections.abc import Awaitable, Callable

from services.bench.evidence.records import Pace
from services.generator.schedule import Schedule

Send = Callable[[int, float], Awaitable[None]]
"""Sends request N, which was due at this time of the monotonic clock."""


async def open_loop(count: int, interval: float, in_flight: int, send: Send) -> Pace:
    """Send `count` requests, one each `interval` seconds; returns when all replies have come.

    A request that is due while `in_flight` others are under way is dropped and counted: the schedule neither waits nor
    catches up by sending it later.
    """
    schedule, running = Schedule(interval), set[asyncio.Task[None]]()
    dropped, late = 0, 0.0
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await asyncio.sleep(schedule.wait())
            late = max(late, schedule.behind())
            due = schedule.take()
            if len(running) >= in_flight:
                dropped += 1
                continue
            task = group.create_task(_sent(send, number, due))
            running.add(task)
            task.add_done_callback(running.discard)
    return Pace(count, count - dropped, dropped, round(late * 1e3, 3))


async def _sent(send: Send, number: int, due: float) -> None:
    await send(number, due)
