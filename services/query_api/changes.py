"""Server-sent events that tell a page when a store has loaded more rows, so that the page queries again.

An event has no figures: the page queries them as always, with the bounds and the cache of every query.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from services.core.dataset import Dataset
from services.core.errors import Backpressure, LogpipeError
from services.query_api.service import QueryService
from services.runtime.http import is_stopping

STREAMS = 32
"""The number of clients that listen at the same time. A further one is refused."""

_POLL_SECONDS = 1.0
_SILENT_SECONDS = 15.0  # after which a comment shows that the connection is alive


class Changes:
    """The streams of one dataset. Used by the event loop's thread only."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._listening = 0

    def stream(self, request: Request, service: QueryService, route: str | None) -> Response:
        """Return a stream about the store `route`, or about all stores. Raises Invalid, Backpressure."""
        if route is not None:
            service.require_store(route)
        if self._listening >= STREAMS:
            raise Backpressure(f"{STREAMS} clients listen to changes already", retry_after=_SILENT_SECONDS)
        events = self._events(request, service, route)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _events(self, request: Request, service: QueryService, route: str | None) -> AsyncIterator[str]:
        """Yield an event when the batch has changed, and when it becomes unknown, until the process stops.

        The stream ends itself when the process stops, because uvicorn would wait for its end.
        """
        sent, sent_at = "", time.monotonic()
        self._listening += 1
        try:
            while not is_stopping(request.app):
                try:
                    event = _event("as_of", {"as_of": await service.latest(self._dataset, route)})
                except LogpipeError as error:
                    event = _event("problem", {"detail": str(error)})
                if event != sent:
                    yield event
                    sent, sent_at = event, time.monotonic()
                elif time.monotonic() - sent_at > _SILENT_SECONDS:
                    yield ": no news\n\n"
                    sent_at = time.monotonic()
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._listening -= 1


def _event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {msgspec.json.encode(data).decode()}\n\n"
