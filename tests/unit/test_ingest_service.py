"""The service between requests and committers, on a committer in memory."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from typing import Any, cast

from services.acceptance.committer import Accepted, Committer, Outcome, Submission
from services.core.dataset import Dataset
from services.core.rows import Rows
from services.datasets.logs import DATASET
from services.ingest_api.service import IngestService


class HeldRows(Rows):
    """Rows of which a test can tell whether they are still held."""


class MemoryCommitter:
    def __init__(self) -> None:
        self.fails = False

    def commit(self, dataset: Dataset, group: Sequence[Submission]) -> list[Outcome]:
        if self.fails:
            raise ZeroDivisionError
        return [Accepted(1, submission.rows) for submission in group]

    def close(self) -> None: ...


async def held_after(service: IngestService, chunks: int) -> tuple[Any, int]:
    """The outcome of a request, and how many of its chunks of rows are still held afterwards."""
    rows = [HeldRows(2, [["a", "b"]]) for _ in range(chunks)]
    held = [weakref.ref(each) for each in rows]
    request = asyncio.create_task(service.accept(DATASET, Submission(list(rows)), 100))
    del rows
    [outcome] = await asyncio.gather(request, return_exceptions=True)
    del request
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    return outcome, sum(each() is not None for each in held)


async def test_the_rows_of_a_request_are_freed_when_it_ends() -> None:
    """They would be kept until the next request: hundreds of megabytes of a large one."""
    committer = MemoryCommitter()
    service = IngestService([cast("Committer", committer)], group_rows=10, group_wait=0.0)
    service.start()
    for chunks in (1, 20):
        assert await held_after(service, chunks) == (Accepted(1, 2 * chunks), 0)
    committer.fails = True
    outcome, held = await held_after(service, 20)
    assert isinstance(outcome, ZeroDivisionError)
    assert held == 0
    await service.drain()
