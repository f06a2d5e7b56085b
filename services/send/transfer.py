"""Sends the chunks of a file to the ingest API: a few requests in flight, each under its own Idempotency-Key."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from services.core.errors import Invalid, InvalidRow, KeyReused, Malformed, OtherLedger
from services.ingest_client.replies import Accepted
from services.send.chunks import Chunk, Reject
from services.send.journal import START_OVER, Journal

STALLED_SECONDS = 120
"""An attempt ends when for this long no byte of it went out and no reply came; on a slow link it may take longer."""

Send = Callable[[bytes, str], Awaitable[Accepted]]
"""Sends a body under a key, as `IngestClient.send` does."""


@dataclass(slots=True)
class Totals:
    """`lines` = `acked` rows + lines `joined` to them + `rejected` + `blank`.

    `acked` rows include those of `duplicates`, which an earlier try or run had stored already.
    """

    lines: int = 0
    joined: int = 0
    blank: int = 0
    rejected: int = 0
    acked: int = 0
    duplicates: int = 0
    not_utf8: int = 0
    offset: int = 0


class Transfer:
    """Sends all chunks. `journal` is None for a pipe. `rejects` is called with the lines that no store will hold."""

    def __init__(
        self,
        send: Send,
        run: str,
        journal: Journal | None,
        rejects: Callable[[list[Reject]], None],
        in_flight: int,
        totals: Totals,
    ) -> None:
        self._send = send
        self._run = run
        self._journal = journal
        self._rejects = rejects
        self._slots = asyncio.Semaphore(in_flight)
        self._totals = totals

    async def run(self, chunks: Iterator[Chunk]) -> None:
        """Send. Raises the error that stopped the transfer; the journal has everything that was acked until then."""
        broken = None
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._slots.acquire()
                    try:
                        chunk = await asyncio.to_thread(next, chunks, None)
                    except Malformed as error:
                        broken = error  # the requests in flight are still awaited
                        break
                    if chunk is None:
                        break
                    if self._journal is None or self._journal.begin(chunk.end):
                        tasks.create_task(self._deliver(chunk))
                    else:
                        self._slots.release()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        if broken:
            raise broken

    async def _deliver(self, chunk: Chunk) -> None:
        base = key = f"send-{self._run}-{chunk.first}-{chunk.end.lines}-{chunk.end.digest:x}"
        duplicate, refused = False, []
        while chunk.rows:
            try:
                duplicate = (await self._send(b"\n".join(chunk.rows), key)).duplicate
                break
            except KeyReused:
                # The key names these very lines: an earlier release parsed them into other rows, and those are stored.
                duplicate = True
                break
            except OtherLedger as error:
                raise OtherLedger(f"the pipeline was wiped while this ran ({error}): {START_OVER}") from error
            except InvalidRow as error:
                if not 0 <= error.index < len(chunk.rows):
                    raise Invalid(f"ingest refuses row {error.index} of {len(chunk.rows)}: {error}") from error
                refused.append(chunk.numbers[error.index])
                chunk.reject(error.index, f"{error.field}: {error.reason}")
                key = f"{base}-without-{len(refused)}-{refused[-1]}"
        self._rejects(sorted(chunk.rejects, key=lambda reject: reject.line))
        if self._journal:
            self._journal.acked(chunk.end)
        self._count(chunk, duplicate)
        self._slots.release()

    def _count(self, chunk: Chunk, duplicate: bool) -> None:
        totals = self._totals
        totals.lines += chunk.lines
        totals.joined += sum(map(len, chunk.more.values()))
        totals.blank += chunk.blank
        totals.rejected += len(chunk.rejects)
        totals.acked += len(chunk.rows)
        totals.duplicates += len(chunk.rows) if duplicate else 0
        totals.not_utf8 += chunk.not_utf8
        totals.offset = max(totals.offset, chunk.offset)
