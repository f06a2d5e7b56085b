"""Apps with the middleware of request footprints, and their calls by ASGI without a server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from request_footprints.memory import MemoryProducer
from request_footprints.middleware import ASGIApp
from request_footprints.settings import Settings

from tests.waiting import until

Footprint = dict[str, Any]


class Recorded:
    """Opens a producer in memory, and reads the footprints that it got."""

    def __init__(self, **producer: Any) -> None:
        self._options = producer
        self.producers: list[MemoryProducer] = []

    def __call__(self, settings: Settings) -> MemoryProducer:
        self.producers.append(MemoryProducer(settings, **self._options))
        return self.producers[-1]

    @property
    def messages(self) -> list[tuple[bytes, bytes]]:
        return [message for producer in list(self.producers) for message in producer.delivered]

    def wait_for(self, number: int) -> list[Footprint]:
        until(lambda: len(self.messages) >= number, about=lambda: f"{len(self.messages)} messages instead of {number}")
        assert len(self.messages) == number
        return [json.loads(value) for _, value in self.messages]

    def wait_for_one(self) -> Footprint:
        (footprint,) = self.wait_for(1)
        return footprint


class Client:
    """Calls an app by ASGI, as a server does. `sent` has the messages of the last call."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.sent: list[Any] = []

    async def get(self, path: str, receive: Callable[[], Any] | None = None, **scope: Any) -> int:
        """Return the status of the response."""
        self.sent = []
        waiting = [{"type": "http.request", "body": b"", "more_body": False}]

        async def stay() -> Any:
            return waiting.pop() if waiting else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            self.sent.append(message)

        request = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"token=secret",
            "headers": [(b"authorization", b"secret")],
            "client": ("192.0.2.7", 1234),
            "root_path": "",
        }
        await self._app({**request, **scope}, receive or stay, send)
        return int(self.sent[0]["status"])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send the app `startup`, and at the end `shutdown`; each is awaited. Raises what the app raises."""
        events: asyncio.Queue[Any] = asyncio.Queue()
        replies: asyncio.Queue[Any] = asyncio.Queue()
        task = asyncio.ensure_future(self._app({"type": "lifespan", "state": {}}, events.get, replies.put))
        try:
            await self._step("startup", events, replies, task)
            yield
            await self._step("shutdown", events, replies, task)
        finally:
            await task

    async def _step(self, name: str, events: Any, replies: Any, task: Any) -> None:
        events.put_nowait({"type": f"lifespan.{name}"})
        reply = asyncio.create_task(replies.get())
        await asyncio.wait({reply, task}, return_when=asyncio.FIRST_COMPLETED)
        if reply.done():
            assert reply.result()["type"] == f"lifespan.{name}.complete"
        else:
            reply.cancel()


async def respond(scope: Any, receive: Any, send: Any) -> None:
    """The smallest app: 200 without a body."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
