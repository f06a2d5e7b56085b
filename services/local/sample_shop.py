"""A small app for `logpipe demo footprints`: a shop whose requests the middleware records."""

import asyncio
import socket
import time

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from request_footprints import FootprintMiddleware

_PATHS = ("/products", "/products/7", "/products/8", "/products/404", "/search", "/cart", "/orders")
_SHARES = (0.2, 0.3, 0.15, 0.03, 0.15, 0.1, 0.07)
_CLIENTS = 16
_chance = np.random.default_rng()


def _app(service: str, kafka: str, topic: str) -> FastAPI:
    """Return the app, whose footprints go to a topic of the brokers `kafka` under the name `service`."""
    app = FastAPI()
    app.add_middleware(FootprintMiddleware, service=service, kafka=kafka, topic=topic)

    @app.get("/products")
    async def products() -> list[int]:
        return [7, 8]

    @app.get("/products/{product}")
    async def product(product: int) -> dict[str, int]:
        if product not in (7, 8):
            raise HTTPException(404, "there is no such product")
        return {"product": product}

    @app.get("/search")
    async def search() -> list[int]:
        await asyncio.sleep(_chance.lognormal(-4, 0.6))
        return [7]

    @app.get("/cart")
    async def cart() -> list[int]:
        return []

    @app.get("/orders")
    async def orders() -> list[int]:
        await asyncio.sleep(_chance.lognormal(-3, 0.6))
        if _chance.random() < 0.05:
            raise HTTPException(503, "the warehouse does not reply")
        return []

    return app


async def run(service: str, kafka: str, topic: str, seconds: float) -> int:
    """Serve the app on a free port of 127.0.0.1 and visit it for `seconds`. Returns the number of replies.

    All footprints are with Kafka then, or counted as dropped.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(_app(service, kafka, topic), log_level="error"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            return await _visit(f"http://127.0.0.1:{listening.getsockname()[1]}", seconds)
        finally:
            server.should_exit = True
            await serving


async def _visit(url: str, seconds: float) -> int:
    """Send requests as many clients do. Returns the number of replies."""
    end, replies = time.monotonic() + seconds, 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal replies
        while time.monotonic() < end:
            await http.get(url + str(_chance.choice(_PATHS, p=_SHARES)))
            replies += 1
            await asyncio.sleep(_chance.exponential(0.02))

    async with httpx.AsyncClient(trust_env=False, timeout=30) as http, asyncio.TaskGroup() as group:
        for _ in range(_CLIENTS):
            group.create_task(client(http))
    return replies
