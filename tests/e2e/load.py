"""Load for end-to-end tests, and the check that no row of the load was lost or doubled."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from services import datasets
from services.generator.load import Load, Report
from services.ingest_client.client import IngestClient
from services.local import verification
from services.local.stack import Stack

RATE = 4_000  # rows/s of logs, a quarter of it of events: enough that every process is busy, few enough for a busy CI
_SETTLE_SECONDS = 180
_LOAD_SECONDS_WAIT = 240


@contextmanager
def under_load(url: str, seconds: float, rate: float = RATE * 1.25, request_rows: int = 500) -> Iterator[list[Report]]:
    """Send `rate` rows a second, four fifths of them logs, for `seconds` while the body of the context runs.

    Afterwards the list holds a report for each dataset, and the outcome of every row is known. A body that fails ends
    the load.
    """
    cancel: list[Callable[[], object]] = []

    async def send() -> list[Report]:
        if task := asyncio.current_task():
            cancel.append(partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))
        async with IngestClient(url, stall=20, patience=_SETTLE_SECONDS) as client:
            loads = [
                Load.at_rate(client, datasets.find("logs"), rate * 0.8, seconds, request_rows),
                Load.at_rate(client, datasets.find("events"), rate * 0.2, seconds, max(1, request_rows // 5)),
            ]
            return list(await asyncio.gather(*(load.run() for load in loads)))

    reports: list[Report] = []
    with ThreadPoolExecutor(1) as thread:
        sending: Future[list[Report]] = thread.submit(asyncio.run, send())
        try:
            yield reports
        except BaseException:
            for end in cancel:
                end()
            raise
        reports += sending.result(seconds + _LOAD_SECONDS_WAIT)
    for report in reports:
        assert (report.refused, report.indeterminate) == (0, 0), report


def verify(stack: Stack, wait: float = 180) -> dict[str, int]:
    """Check that every store holds each accepted row once and unchanged; return the accepted rows of each dataset."""
    report = verification.verify(stack.settings, wait, "--all")
    assert report["ok"], json.dumps(report, indent=1)
    assert {result["store"] for result in report["results"]} == {"postgres", "clickhouse", "lake"}
    return {result["dataset"]: result["expected"] for result in report["results"]}


class Accepted:
    """Compares the rows that were acknowledged with the rows that the ledger accepted since this object was made."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._before = verify(stack)

    def check(self, reports: list[Report], wait: float = 180) -> None:
        """Check that every store holds its former rows and the acknowledged ones, no others, within `wait` seconds."""
        after = verify(self._stack, wait)
        acked = {report.dataset: report.acked for report in reports}
        assert {name: after[name] - self._before.get(name, 0) for name in acked} == acked
