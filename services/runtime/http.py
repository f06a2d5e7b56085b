"""The FastAPI application every process serves: errors as problem+json, auth, health, readiness, metrics.

A room adds its routes to an APIRouter and says by `needs(access)` who may call them.
"""

import asyncio
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from services.core import metric_names
from services.core.errors import UNEXPECTED, Backpressure, Invalid, LogpipeError
from services.runtime import connections, footprints, logs, metrics
from services.runtime.auth import Access, Guard
from services.runtime.health import Readiness
from services.runtime.origins import OriginGuard
from services.runtime.problems import problem
from services.runtime.settings import ListenSettings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

SHUTDOWN_SECONDS = 20
"""For requests that are under way at SIGTERM. The pod's grace (60 s or more) also covers the end of the lifespan."""

OPEN_PATHS = frozenset({"/health", "/healthz", "/readyz", "/metrics"})
"""Paths of probes and scrapes, which come by any host name."""

_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
"""Of every reply: no page of another origin shows it in a frame, or loads it as an image or a script."""

_log = logs.get("http")


def needs(access: Access) -> Any:
    """Return a route dependency: who may call it. Routes without one are open."""

    async def check(request: Request) -> None:
        request.app.state.guard.check(access, request.headers.get("authorization", ""))
        footprints.allow(request)

    return Depends(check)


async def _refuse_repeated_parameters(request: Request) -> None:
    """FastAPI would take one of the values, and the client would not learn which."""
    counts = Counter(name for name, _ in request.query_params.multi_items())
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise Invalid(f"{', '.join(repeated)}: given more than once")


def make_app(
    title: str,
    settings: ListenSettings,
    routers: list[APIRouter],
    lifespan: Lifespan,
    readiness: Readiness,
    open_paths: frozenset[str] = frozenset(),
) -> FastAPI:
    """`open_paths`: paths for probes besides those that every process has."""
    app = FastAPIOffline(redoc_url=None, title=title, lifespan=lifespan, version="1")
    app.state.guard = Guard(settings)
    app.include_router(_operations(readiness))
    for router in routers:
        app.include_router(router, dependencies=[Depends(_refuse_repeated_parameters)])
    app.add_exception_handler(LogpipeError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)
    guard_origins(app, settings, OPEN_PATHS | open_paths)
    app.add_middleware(_Measured)
    app.add_middleware(_HeadAsGet)
    footprints.record(app, title.lower().replace(" ", "-"))
    return app


def guard_origins(
    app: Starlette, settings: ListenSettings, open_paths: frozenset[str] = frozenset(), *, links: bool = True
) -> None:
    """Keep pages of other origins out, but for those that the settings name. See OriginGuard."""
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["*"],
        )
    app.add_middleware(OriginGuard, settings=settings, open_paths=open_paths, links=links)


def is_stopping(app: Starlette) -> bool:
    """Return whether the process is about to end: a reply that would last as long as its client must end, too."""
    return bool(getattr(app.state, "is_stopping", False))


def serve(app: Starlette, host: str, port: int, *, share_port: bool = False, own_port: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT: stop accepting, finish what is under way, run the lifespan's end, return.

    `share_port`: other processes may serve the same port, and the kernel deals out the connections (Linux).
    `own_port`: a second port, which no other process shares. Prometheus reads the metrics of this process there.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        ws="none",
        http=connections.bounded_protocol(connections.max_connections()),
        headers=_HEADERS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        backlog=4096,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has ended: that is no failure
        signal.signal(number, lambda number, frame: None)
    server = _Server(config, app)
    if not share_port:
        server.run()
        return
    with ExitStack() as opened:
        sockets = [opened.enter_context(_bound(host, port, share=True))]
        if own_port is not None:
            sockets.append(opened.enter_context(_bound(host, own_port, share=False)))
        server.run(sockets=sockets)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.state.is_stopping = True
        super().handle_exit(sig, frame)


def _bound(host: str, port: int, *, share: bool) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


def _operations(readiness: Readiness) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "UP"}

    @router.get("/readyz")
    async def ready() -> Response:
        failing = await run_in_threadpool(readiness.failing)
        if failing:
            return problem(503, "not ready: " + "; ".join(f"{k}: {v}" for k, v in failing.items()), checks=failing)
        if degraded := await run_in_threadpool(readiness.degraded):
            return JSONResponse({"status": "DEGRADED", "degraded": degraded})
        return JSONResponse({"status": "READY"})

    @router.get("/metrics")
    async def metrics_text() -> Response:
        await run_in_threadpool(readiness.degraded)
        body, content_type = metrics.exposition()
        return Response(body, media_type=content_type)

    return router


class _HeadAsGet:
    """ASGI middleware: HEAD is answered as GET is, without the body. A body in many chunks ends at its first chunk."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        ended = False

        async def without_body(message: ASGIMessage) -> None:
            nonlocal ended
            if message["type"] != "http.response.body":
                await send(message)
            elif not ended:
                ended = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await asyncio.sleep(0)  # so that a stream, which is cancelled once its reply is complete, can end

        await self._app({**scope, "method": "GET"}, receive, without_body)


class _Measured:
    """ASGI middleware: the time and status of each request, by route. ADR 0005 says why this is not a library."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noting_status(message: ASGIMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting_status)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - start
            metrics.histogram(metric_names.HTTP_SECONDS, route, str(status)).observe(seconds)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LogpipeError)
    headers = {}
    if isinstance(error, Backpressure):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    extra = {name: getattr(error, name) for name in ("index", "field", "store") if hasattr(error, name)}
    return problem(error.status, str(error), error.title, headers, **extra)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = [": ".join(filter(None, [".".join(map(str, e["loc"][1:])), e["msg"]])) for e in error.errors()]
    return problem(422, "; ".join(wrong), "Invalid request")


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return problem(400, "the client left before its body was complete")  # for the metrics: the client does not read it


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("unexpected error", path=request.url.path, exc_info=error)
    return problem(500, UNEXPECTED)
