"""Sends bodies of rows to the ingest API and finds out what became of each.

Every attempt of a body carries the same Idempotency-Key, so that one whose fate is unknown can be sent again without
doubling a row. A body ends up
    acked          200: its rows are stored
    refused        they are not: a 4xx, or the ingest API was full or away until the deadline
    indeterminate  nobody knows: a lost connection, a timeout or a server error, not settled by the deadline
"""

import asyncio
import io
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import aiohttp

from services.core.dataset import Dataset

Fate = Literal["acked", "refused", "indeterminate"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between attempts, doubling, when the server names none
_WRITE_AT_ONCE_BYTES = 1 << 20  # larger bodies are written in pieces, so that other requests go on


@dataclass(frozen=True, slots=True)
class Outcome:
    fate: Fate
    attempts: int
    detail: str = ""  # of the last attempt, unless acked


@dataclass(frozen=True, slots=True)
class _Reply:
    """One attempt. `fate` is None when another may succeed, `in_doubt` when the rows may be stored nevertheless."""

    fate: Fate | None
    detail: str = ""
    in_doubt: bool = False
    pause: float | None = None


class IngestClient:
    """A pool of connections to one ingest API. An async context manager.

    `timeout` is for one attempt, `deadline` for settling a body, both in seconds.
    """

    def __init__(self, url: str, token: str = "", timeout: float = 30.0, deadline: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/x-ndjson"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout = timeout
        self._deadline = deadline
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # its users bound what is in flight
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, dataset: Dataset, body: bytes, key: str) -> Outcome:
        """Send NDJSON `body` until its fate is known or the deadline has passed. Raises nothing but bugs."""
        deadline = time.monotonic() + self._deadline
        pause, attempts, in_doubt = _FIRST_PAUSE, 0, False
        while True:
            attempts += 1
            reply = await self._attempt(dataset, body, key)
            if reply.fate is not None:
                return Outcome(reply.fate, attempts, reply.detail)
            in_doubt = in_doubt or reply.in_doubt
            wait = pause if reply.pause is None else reply.pause
            if time.monotonic() + wait > deadline:
                return Outcome("indeterminate" if in_doubt else "refused", attempts, reply.detail)
            await asyncio.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _attempt(self, dataset: Dataset, body: bytes, key: str) -> _Reply:
        assert self._session is not None, "enter the client first"
        url = f"{self.url}/api/collect/{dataset.plural}"
        data = body if len(body) <= _WRITE_AT_ONCE_BYTES else io.BytesIO(body)
        try:
            async with self._session.post(url, data=data, headers={"Idempotency-Key": key}) as response:
                text = await response.text(errors="replace")
                return _judge(response.status, text, response.headers.get("Retry-After"))
        except aiohttp.ClientConnectorError as error:  # nothing was sent
            return _Reply(None, str(error))
        except TimeoutError:
            return _Reply(None, f"no answer within {self._timeout:g} s", in_doubt=True)
        except aiohttp.ClientError as error:
            return _Reply(None, f"connection lost: {error or type(error).__name__}", in_doubt=True)


def _judge(status: int, text: str, retry_after: str | None) -> _Reply:
    detail = f"{status}: {text[:300]}"
    if status == 200:
        return _Reply("acked")
    if status == 503 and retry_after is not None:  # overload: refused before any work was done
        return _Reply(None, detail, pause=_seconds(retry_after))
    if status == 409 or status >= 500:  # an earlier attempt still runs; or a store failed, perhaps after its commit
        return _Reply(None, detail, in_doubt=True)
    return _Reply("refused", detail)


def _seconds(retry_after: str) -> float | None:
    try:
        return max(_FIRST_PAUSE, float(retry_after))
    except ValueError:  # an HTTP date: our own pauses do as well
        return None
