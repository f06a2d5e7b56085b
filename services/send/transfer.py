"""Chunks into the ingest API: a few requests in flight, each with its key, retried until acked or out of patience."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec

from services.core.errors import (
    Backpressure,
    Conflict,
    Invalid,
    InvalidRow,
    KeyReused,
    LogpipeError,
    Malformed,
    OtherLedger,
    StoreDown,
    Unauthorized,
)
from services.core.ledger import LEDGER_HEADER
from services.send.chunks import Chunk, Reject
from services.send.journal import ANEW, Journal

_ROUTE = "/api/collect/logs"
_HEALTH = "/api/collect/health"
STALLED_SECONDS = 120
"""A request is given up when so long nothing of it went out and nothing came back; a slow link may take longer."""
TIMEOUT = aiohttp.ClientTimeout(total=STALLED_SECONDS, sock_connect=5)
_UPLOAD_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5)
_SLICE = 16 << 10  # bytes of a body between two looks at its progress
_SEND_BUFFER = 128 << 10  # bytes that the kernel takes before they are out: what lies there looks like progress
_PAUSES = (0.1, 10.0)  # seconds: the first between two tries, doubled up to the last


Result = TypeVar("Result")


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


class Ingest:
    """The client of one route. `patience`: seconds to go on trying a request after its first failure.

    Raises OtherLedger when the ledger is another one than `ledger` found, and then nothing of the request is stored.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, patience: float, on_retry: Callable[[str], None]
    ) -> None:
        self._session = session
        self._url = url.rstrip("/") + _ROUTE
        self._health = url.rstrip("/") + _HEALTH
        self._ledger = ""
        self._patience = patience
        self._on_retry = on_retry

    async def ledger(self) -> str:
        """The id of the ledger that rows go to; '' when ingest is of a release that does not tell it."""
        self._ledger = await self._retried(self._get_ledger)
        return self._ledger

    async def send(self, key: str, body: bytes) -> bool:
        """Returns whether ingest had it already. Raises InvalidRow, or the last error when patience is at its end."""
        return await self._retried(lambda: self._post(key, body))

    async def _retried(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        pause, limit = _PAUSES
        give_up = 0.0
        while True:
            try:
                return await attempt()
            except (Backpressure, Conflict, StoreDown) as error:
                now = time.monotonic()
                give_up = give_up or now + self._patience
                wait = max(pause, error.retry_after if isinstance(error, Backpressure) else 0)
                if now + wait > give_up:
                    raise StoreDown(self._url, f"gave up after {self._patience:g} s: {error}") from error
                self._on_retry(str(error))
                await asyncio.sleep(wait)
                pause = min(pause * 2, limit)

    async def _get_ledger(self) -> str:
        try:
            async with self._session.get(self._health) as response:
                if response.status != 200:
                    raise _error(response.status, response.headers.get("Retry-After", ""), await response.read())
                ledger = response.headers.get(LEDGER_HEADER)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise StoreDown("ingest", str(error) or type(error).__name__) from error
        if ledger == "":
            raise StoreDown("ingest", "it has not read yet which ledger it writes to")
        return ledger or ""

    async def _post(self, key: str, body: bytes) -> bool:
        headers = {
            "Content-Type": "application/x-ndjson",
            "Content-Length": str(len(body)),
            "Idempotency-Key": key,
        }
        if self._ledger:
            headers[LEDGER_HEADER] = self._ledger
        try:
            async with (
                asyncio.timeout(STALLED_SECONDS) as deadline,
                self._session.post(
                    self._url, data=_slices(body, deadline), headers=headers, timeout=_UPLOAD_TIMEOUT
                ) as response,
            ):
                content = await response.read()
                if response.status == 200:
                    return bool(msgspec.json.decode(content).get("duplicate"))
                raise _error(response.status, response.headers.get("Retry-After", ""), content)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise StoreDown("ingest", str(error) or type(error).__name__) from error
        except (msgspec.DecodeError, AttributeError) as error:
            raise LogpipeError(f"{self._url} answers 200, but not as the ingest API does") from error


def connector() -> aiohttp.TCPConnector:
    return aiohttp.TCPConnector(socket_factory=_socket)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return made


async def _slices(body: bytes, deadline: asyncio.Timeout) -> AsyncIterator[bytes]:
    """The body; each slice that the connection took moves the deadline."""
    loop = asyncio.get_running_loop()
    for start in range(0, len(body), _SLICE):
        yield body[start : start + _SLICE]
        with suppress(RuntimeError):  # the reply came before the whole body was out
            deadline.reschedule(loop.time() + STALLED_SECONDS)


class Transfer:
    """Sends all chunks; `journal` is None for a pipe. `rejects` is called with what no store will ever hold."""

    def __init__(
        self,
        ingest: Ingest,
        run: str,
        journal: Journal | None,
        rejects: Callable[[list[Reject]], None],
        in_flight: int,
        totals: Totals,
    ) -> None:
        self._ingest = ingest
        self._run = run
        self._journal = journal
        self._rejects = rejects
        self._slots = asyncio.Semaphore(in_flight)
        self._totals = totals

    async def send(self, chunks: Iterator[Chunk]) -> None:
        """Raises what stopped it; everything acked until then is in the journal."""
        broken = None
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._slots.acquire()
                    try:
                        chunk = await asyncio.to_thread(next, chunks, None)
                    except Malformed as error:
                        broken = error  # what is under way is still awaited
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
                duplicate = await self._ingest.send(key, b"\n".join(chunk.rows))
                break
            except KeyReused:
                # The key names these very lines: an earlier release read them otherwise, and what it read is stored.
                duplicate = True
                break
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


def _error(status: int, retry_after: str, content: bytes) -> LogpipeError:
    problem: dict[str, Any] = {}
    with suppress(msgspec.MsgspecError):  # a proxy in between answers in its own words
        problem = msgspec.json.decode(content, type=dict[str, Any])
    detail = f"{status} {problem.get('detail') or content[:200].decode(errors='replace')}".strip()
    match status:
        case 412:
            return OtherLedger(f"the pipeline was wiped while this ran ({detail}): {ANEW}")
        case 409:
            return Conflict(detail)
        case 408 | 429 | 502 | 503 | 504:
            return Backpressure(detail, float(retry_after) if retry_after.isdecimal() else 1.0)
        case 401 | 403:
            return Unauthorized(f"{detail} (LOGPIPE_TOKEN is the token that is sent)")
        case 422 if problem.get("title") == KeyReused.title:
            return KeyReused(detail)
        case 422 if isinstance(problem.get("index"), int):
            reason = str(problem.get("detail", "")).partition(": ")[2] or detail
            return InvalidRow(problem["index"], str(problem.get("field", "")), reason)
    return LogpipeError(f"ingest answers {detail}")
