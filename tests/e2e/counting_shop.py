"""An app of one route whose requests the middleware records. It counts its requests by itself, too.

`uvicorn` runs the app in a process of its own; the variables FOOTPRINTS_... have the middleware's settings.
"""

from fastapi import FastAPI
from request_footprints import FootprintMiddleware, counts
from request_footprints.middleware import ASGIApp, Receive, Scope, Send

ITEMS = "/items/"
COUNTS = "/counts"


class _Served:
    """Counts the requests for items that have ended, whether or not the client got the response."""

    requests = 0

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["type"] == "http" and scope["path"].startswith(ITEMS):
                _Served.requests += 1


app = FastAPI()


@app.get(ITEMS + "{item}")
async def item(item: int) -> int:
    return item


@app.get(COUNTS)
async def counted() -> dict[str, int]:
    found = counts()
    return {"served": _Served.requests, "delivered": found.delivered, "dropped": found.dropped}


app.add_middleware(FootprintMiddleware, exclude=[COUNTS])
app.add_middleware(_Served)
