"""Groups the rows of requests, passes each group to a committer, and returns its outcome to each request."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from services.acceptance.committer import Accepted, Committer, Outcome, Submission
from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.core.request_groups import RequestGroups
from services.ingest_api.decoding import free

GROUP_BYTES = 16 << 20  # of request bodies in one transaction; more would not make it more efficient

_Waiting = tuple[Submission, "asyncio.Future[Outcome]"]


class IngestService:
    """All methods belong to one event loop; each committer is used by one thread at a time."""

    def __init__(self, committers: Sequence[Committer], group_rows: int, group_wait: float) -> None:
        self._committers = committers
        self._groups: RequestGroups[Dataset, _Waiting] = RequestGroups(
            group_rows, GROUP_BYTES, group_wait, time.monotonic
        )
        self._changed = asyncio.Event()
        self._draining = False
        self._threads = ThreadPoolExecutor(len(committers), thread_name_prefix="committer")
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._workers = [asyncio.create_task(self._work(committer)) for committer in self._committers]

    async def accept(self, dataset: Dataset, submission: Submission, size: int) -> Accepted:
        """Return the batch once the rows, from a body of `size` bytes, are on disk.

        Raises Conflict, Invalid, OtherLedger or StoreDown. Nothing is stored after these errors, with one exception: if
        the connection was lost during COMMIT, StoreDown does not say whether the rows are stored.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._groups.add(dataset, (submission, future), submission.rows, size)
        self._changed.set()
        outcome = await future
        if isinstance(outcome, LogpipeError):
            raise outcome
        return outcome

    async def drain(self) -> None:
        """Commit the requests that wait, then stop."""
        self._draining = True
        self._changed.set()
        await asyncio.gather(*self._workers)
        self._threads.shutdown()
        for committer in self._committers:
            committer.close()

    async def _work(self, committer: Committer) -> None:
        while group := await self._next_group():
            await self._commit(committer, *group)
            del group  # the variable would keep the rows in memory until the next group comes

    async def _commit(self, committer: Committer, dataset: Dataset, waiting: Sequence[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        submissions = [submission for submission, _ in waiting]
        try:
            outcomes = await loop.run_in_executor(self._threads, _committed, committer, dataset, submissions)
        except Exception as error:  # noqa: BLE001 - a bug: these requests fail, and the committer goes on with the next group
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), outcome in zip(waiting, outcomes, strict=True):
            if not future.done():  # a future is done before its time if its client has disconnected
                future.set_result(outcome)

    async def _next_group(self) -> tuple[Dataset, list[_Waiting]] | None:
        """Return the next group that is due; None if the service is draining and no request is left."""
        while True:
            if group := self._groups.pop_due():
                return group
            if self._draining and not len(self._groups):
                return None
            self._changed.clear()
            try:
                async with asyncio.timeout(self._groups.seconds_until_due()):
                    await self._changed.wait()
            except TimeoutError:
                pass  # the oldest request has waited long enough


def _committed(committer: Committer, dataset: Dataset, submissions: Sequence[Submission]) -> Sequence[Outcome]:
    """Commit in a thread of the pool, and free the rows there, because that would hold up the event loop."""
    try:
        return committer.commit(dataset, submissions)
    finally:
        for submission in submissions:
            free(submission.chunks)
