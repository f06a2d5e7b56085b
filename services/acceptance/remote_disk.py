"""The disk of a PostgreSQL on another machine. A process `logpipe disk-space` on that machine serves its free bytes."""

import time

import httpx
import msgspec
from pydantic import SecretStr

from services.core.backoff import Backoff
from services.core.errors import StoreDown
from services.runtime.workers import Worker

_POLL_SECONDS = 2.0
_TIMEOUT_SECONDS = 2.0
_KEPT_SECONDS = 60.0
"""The last figure counts for this time, which is longer than a restart of the other process takes."""


class _Reply(msgspec.Struct):
    free: int


class RemoteDisk:
    """Implements Disk. A worker asks for the free bytes, which are unknown after a minute without a reply."""

    def __init__(self, url: str, token: str) -> None:
        self.name = url
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_SECONDS)
        self._free: int | None = None
        self._known_at = time.monotonic()
        self.worker = Worker("disk-space", self._ask, close=self._client.close, backoff=Backoff(1.0, 5.0))

    def free(self) -> int | None:
        return self._free if self._age() <= _KEPT_SECONDS else None

    def health(self) -> str | None:
        """Return why the free bytes are unknown; None if they are known, or no reply is overdue yet."""
        if (age := self._age()) <= _KEPT_SECONDS:
            return None
        return f"free space unknown for {age:.0f} s, rows are accepted without a floor: {self.worker.health()}"

    def _age(self) -> float:
        return time.monotonic() - self._known_at

    def _ask(self) -> float:
        """The turn of the worker. Returns the seconds until the next turn."""
        try:
            reply = self._client.get("/disk").raise_for_status()
            free = msgspec.json.decode(reply.content, type=_Reply).free
        except (httpx.HTTPError, msgspec.MsgspecError) as error:
            raise StoreDown("disk", f"{self.name}/disk: {error}") from error
        self._free, self._known_at = free, time.monotonic()
        return _POLL_SECONDS


def remote_disk_of(url: str, token: SecretStr | None) -> RemoteDisk | None:
    """Return the disk whose free bytes the `logpipe disk-space` at `url` serves; None without a URL."""
    return RemoteDisk(url, token.get_secret_value() if token else "") if url else None
