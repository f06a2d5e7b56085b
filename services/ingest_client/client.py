"""The client of the ingest API: sends bodies of rows, and finds out what became of each.

Every attempt of a body has the same Idempotency-Key, so that a body whose fate is unknown is sent again and no row is
stored twice. `retrying.py` says which failures are repeated; `replies.py` says what a reply means.
"""

import asyncio
import io
import socket
from types import TracebackType
from typing import Self

import aiohttp

from services.core.dataset import Dataset
from services.core.errors import StoreDown, Unreachable
from services.core.ledger import FORMER_LEDGERS_HEADER, LEDGER_HEADER
from services.ingest_client.replies import INGEST, Accepted, accepted, error_of
from services.ingest_client.retrying import OnRetry, retried

CONNECT_SECONDS = 5
_SEND_BUFFER = 320 << 10  # bytes of the kernel's send buffer: what waits there looks like progress; fits 1,000 log rows
_LOOKS = 4  # at the progress of a body that exceeds the send buffer, in the seconds after which it counts as stalled
_WRITE_AT_ONCE_BYTES = 1 << 20  # larger bodies are written in chunks, so that other requests go on


class IngestClient:
    """A pool of connections to one ingest API. An async context manager; all methods are called on one event loop.

    The client does not bound the requests in flight: its callers do.

    `patience`: seconds to go on repeating a request after its first failure. `stall`: an attempt ends when for so many
    seconds nothing of its body went out and no reply came; a body on a slow link may take longer in all.
    """

    def __init__(self, url: str, token: str = "", *, patience: float = 60.0, stall: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._patience = patience
        self._stall = stall
        self.former_ledgers: frozenset[str] = frozenset()
        """The ids that the ledger had before it was restored from backups, once `ledger` was called."""
        self._ledger = ""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ledger(self, on_retry: OnRetry | None = None) -> str:
        """Return the id of the ledger that rows go to; '' when ingest is of a release that does not name its ledger.

        From now on ingest stores the rows that this client sends in that ledger only: see `send`. Waits as `send` does,
        and raises the same errors, but OtherLedger.
        """
        self._ledger = await retried(self._get_ledger, self._patience, on_retry)
        return self._ledger

    async def send(self, dataset: Dataset, body: bytes, key: str, on_retry: OnRetry | None = None) -> Accepted:
        """Send NDJSON `body` until its rows are stored; returns what the reply says of them.

        `key`: the Idempotency-Key, at most 255 ASCII characters. `on_retry`: see `retried`.

        Raises
            InvalidRow   nothing of the body is stored because of this row
            KeyReused    the rows of another body are stored under this key, and nothing of this body is
            OtherLedger  the ledger is no longer the one that `ledger` found; nothing of the body is stored
            Undelivered  the patience has run out; `in_doubt` says whether the rows may be stored
            LogpipeError any other refusal; nothing of the body is stored, unless an attempt before left that in doubt
        """
        return await retried(lambda: self._post(dataset, body, key), self._patience, on_retry)

    async def _get_ledger(self) -> str:
        assert self._session is not None, "enter the client first"
        async with _Attempt(self._stall), self._session.get(f"{self.url}/api/collect/health") as response:
            if response.status != 200:
                raise error_of(response.status, response.headers.get("Retry-After"), await response.read())
            ledger = response.headers.get(LEDGER_HEADER)
            former = response.headers.get(FORMER_LEDGERS_HEADER, "")
        if ledger == "":
            raise StoreDown(INGEST, "it has not read yet which ledger it writes to")
        self.former_ledgers = frozenset(filter(None, former.split(",")))
        return ledger or ""

    async def _post(self, dataset: Dataset, body: bytes, key: str) -> Accepted:
        assert self._session is not None, "enter the client first"
        headers = {
            "Content-Type": "application/x-ndjson",
            "Idempotency-Key": key,
        }
        if self._ledger:
            headers[LEDGER_HEADER] = self._ledger
        url = f"{self.url}/api/collect/{dataset.plural}"
        upload = aiohttp.UploadTracker() if len(body) > _SEND_BUFFER else None
        data = body if len(body) <= _WRITE_AT_ONCE_BYTES else io.BytesIO(body)
        async with (
            _Attempt(self._stall, upload),
            self._session.post(url, data=data, headers=headers, upload_tracker=upload) as response,
        ):
            content = await response.read()
        if response.status != 200:
            raise error_of(response.status, response.headers.get("Retry-After"), content)
        return accepted(content)


class _Attempt:
    """A context that ends when nothing moves for `stall` seconds, and that translates aiohttp's errors.

    `upload` tells how much of the body went out; without it, the attempt has `stall` seconds in all.
    """

    def __init__(self, stall: float, upload: aiohttp.UploadTracker | None = None) -> None:
        self._stall = stall
        self._upload = upload
        self._written = 0
        self._deadline = asyncio.timeout(stall)
        self._look: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._deadline.__aenter__()
        if self._upload:
            self._look_later(self._upload, asyncio.get_running_loop())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._look:
            self._look.cancel()
        try:
            await self._deadline.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise StoreDown(INGEST, f"no progress for {self._stall:g} s") from late
        match error:
            case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
                raise Unreachable(INGEST, str(error) or type(error).__name__) from error
            case aiohttp.ClientError() | OSError():
                raise StoreDown(INGEST, f"connection lost: {error or type(error).__name__}") from error

    def _look_later(self, upload: aiohttp.UploadTracker, loop: asyncio.AbstractEventLoop) -> None:
        def look() -> None:
            written = upload.bytes_written
            if written != self._written and not self._deadline.expired():
                self._written = written
                self._deadline.reschedule(loop.time() + self._stall)
            self._look_later(upload, loop)

        self._look = loop.call_later(self._stall / _LOOKS, look)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return made
