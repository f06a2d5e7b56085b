"""The ASGI middleware: `app.add_middleware(FootprintMiddleware, service="shop")`.

On the event loop it reads the clock three times and appends one tuple to a queue; all else is the background thread's
work. It never waits for Kafka, and hands every exception of the app on. WebSockets pass untouched and unrecorded.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Unpack

from request_footprints.footprint import MAX_METHOD, MAX_MOUNTED, path_bound
from request_footprints.kafka import KafkaProducer
from request_footprints.recorder import Recorder
from request_footprints.sender import OpenProducer
from request_footprints.settings import Arguments, Settings

ASGIMessage = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

CLIENT_LEFT = 499  # as nginx has it
_SHUTDOWN_ENDED = frozenset({"lifespan.shutdown.complete", "lifespan.shutdown.failed"})


class FootprintMiddleware:
    """`settings` are fields of `settings.Settings`. Raises ValueError or TypeError if one is wrong.

    The status of a footprint is the one that the app sent; 500 if the app raised an exception, even during a stream;
    499 if the client left before the response began. The duration ends when the last byte is handed to the server.

    `accepts` is called with the scope of each request that has ended; without a True, the request is not recorded.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        open_producer: OpenProducer = KafkaProducer,
        accepts: Callable[[Scope], bool] | None = None,
        **settings: Unpack[Arguments],
    ) -> None:
        read = Settings.read(settings)
        self._app = app
        self._enabled = read.enabled
        self._sample = read.sample if read.enabled else 0.0
        self._most = path_bound(read.max_link) + 1
        self._accepts = accepts
        self._recorder = Recorder(read, open_producer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pass(scope, receive, send)
            return
        if self._sample < 1.0 and random.random() >= self._sample:  # noqa: S311 - no secret depends on it
            await self._app(scope, receive, send)
            return
        started, start = time.time(), time.perf_counter()
        path = scope.get("path", "")[: self._most]
        status, end = 0, 0.0

        def noting(message: ASGIMessage) -> Awaitable[None]:
            # The chunks of a stream come first, and this is no coroutine function: each chunk costs 50 ns, not 250.
            nonlocal status, end
            if message.get("more_body"):
                return send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                end = time.perf_counter()
            return send(message)

        try:
            await self._app(scope, receive, noting)
        except BaseException as error:
            if not end:
                status = (status or CLIENT_LEFT) if _client_left(error) else 500
            raise
        finally:
            if self._accepts is None or self._accepts(scope):
                self._recorder.record(
                    (
                        started,
                        scope.get("method", "")[: MAX_METHOD + 1],
                        path,
                        status or 500,
                        (end or time.perf_counter()) - start,
                        scope.get("route"),
                        scope.get("fastapi"),
                        _mounted(scope),
                        scope.get("router"),
                    )
                )

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Anything but a request. The start and the end of the app's lifespan are those of the background thread."""
        if scope["type"] != "lifespan" or not self._enabled:
            await self._app(scope, receive, send)
            return

        async def flushing(message: ASGIMessage) -> None:
            if message["type"] in _SHUTDOWN_ENDED:
                await self._close()
            await send(message)

        self._recorder.start()
        await self._app(scope, receive, flushing)

    async def _close(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # trio, for example: the app has ended, so that blocking delays nothing
            self._recorder.close()
        else:
            await asyncio.to_thread(self._recorder.close)


def _mounted(scope: Scope) -> str:
    """Return the part of the path that mounts matched. Starlette's mounts set `app_root_path`."""
    outer = scope.get("app_root_path")
    return "" if outer is None else scope.get("root_path", "")[len(outer) : len(outer) + MAX_MOUNTED + 1]


def _client_left(error: BaseException) -> bool:
    """Return whether the server cancelled the request, or the app was told that the client left.

    Starlette's ClientDisconnect is known by its name, because this package does not depend on Starlette.
    """
    return isinstance(error, asyncio.CancelledError) or type(error).__name__ == "ClientDisconnect"
