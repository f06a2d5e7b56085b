"""The generator's routes, by the HTTP contract."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from services.generator.service import Config, Generator
from services.runtime.http import needs

BatchSize = Annotated[int, Query(ge=1, le=100_000, description="rows of one request")]
Interval = Annotated[float, Query(ge=0.001, le=86_400, description="seconds from one batch to the next")]
Count = Annotated[int, Query(ge=1, le=10_000_000, description="rows in all")]
Days = Annotated[float, Query(ge=0, le=366, description="the days before now that the rows are from; 0: now")]
SampleCount = Annotated[int, Query(ge=1, le=10_000)]

_PAGE = (Path(__file__).parent / "page" / "index.html").read_text()
_ENDPOINTS = {
    "control": ["POST /control/start", "POST /control/stop", "GET /control/status"],
    "burst": ["POST /burst/logs", "POST /burst/events", "POST /burst/mixed", "POST /burst/footprints"],
    "sample": ["GET /sample/log", "GET /sample/event", "GET /sample/logs", "GET /sample/events"],
}

router = APIRouter()


def _generator(request: Request) -> Generator:
    generator: Generator = request.app.state.generator
    return generator


@router.get("/", response_class=JSONResponse)
async def index(request: Request) -> Response:
    """Return the web page to a browser, and the list of endpoints to other clients."""
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(_PAGE, headers={"Vary": "Accept"})
    running = _generator(request).status()["running"]
    body = {"service": "generator", "status": "running" if running else "stopped", "endpoints": _ENDPOINTS}
    return JSONResponse(body, headers={"Vary": "Accept"})


@router.post("/control/start", tags=["control"], dependencies=[needs("control")])
async def start(
    request: Request, batch_size: BatchSize = 100, log_interval: Interval = 5.0, event_interval: Interval = 10.0
) -> dict[str, Any]:
    """Send a batch of logs each `log_interval` and one of events each `event_interval`, from now on."""
    generator = _generator(request)
    seed = generator.start(Config(batch_size, log_interval, event_interval))
    status = generator.status()
    return {"status": "started", "config": status["config"], "throughput": status["throughput"], "seed": seed}


@router.post("/control/stop", tags=["control"], dependencies=[needs("control")])
async def stop(request: Request) -> dict[str, str]:
    _generator(request).stop()
    return {"status": "stopped"}


@router.get("/control/status", tags=["control"], dependencies=[needs("read")])
async def status(request: Request) -> dict[str, Any]:
    return _generator(request).status()


@router.post("/burst/logs", tags=["burst"], dependencies=[needs("control")])
async def burst_logs(request: Request, count: Count = 1000, batch_size: BatchSize = 100) -> dict[str, Any]:
    """Send `count` logs now; answers when the fate of each is known."""
    return await _generator(request).burst("logs", count, batch_size)


@router.post("/burst/events", tags=["burst"], dependencies=[needs("control")])
async def burst_events(request: Request, count: Count = 1000, batch_size: BatchSize = 100) -> dict[str, Any]:
    """Send `count` events now; answers when the fate of each is known."""
    return await _generator(request).burst("events", count, batch_size)


@router.post("/burst/footprints", tags=["burst"], dependencies=[needs("control")])
async def burst_footprints(
    request: Request, count: Count = 1000, batch_size: BatchSize = 1000, days: Days = 7.0
) -> dict[str, Any]:
    """Send `count` footprints of the last `days` now; answers when the fate of each is known.

    They are the web traffic of a shop in Seoul, with the rhythm of its days and weeks.
    """
    return await _generator(request).burst("footprints", count, batch_size, days)


@router.post("/burst/mixed", tags=["burst"], dependencies=[needs("control")])
async def burst_mixed(
    request: Request, log_count: Count = 1000, event_count: Count = 500, batch_size: BatchSize = 100
) -> dict[str, Any]:
    """Send logs, then events."""
    generator = _generator(request)
    logs = await generator.burst("logs", log_count, batch_size)
    events = await generator.burst("events", event_count, batch_size)
    return {"status": "completed", "logs": logs, "events": events, "total_sent": logs["sent"] + events["sent"]}


@router.get("/sample/log", tags=["sample"], dependencies=[needs("read")])
async def sample_log(request: Request) -> Response:
    return _json(_generator(request).sample("logs", 1)[0])


@router.get("/sample/event", tags=["sample"], dependencies=[needs("read")])
async def sample_event(request: Request) -> Response:
    return _json(_generator(request).sample("events", 1)[0])


@router.get("/sample/logs", tags=["sample"], dependencies=[needs("read")])
async def sample_logs(request: Request, count: SampleCount = 10) -> Response:
    return _json(b"[" + b",".join(_generator(request).sample("logs", count)) + b"]")


@router.get("/sample/events", tags=["sample"], dependencies=[needs("read")])
async def sample_events(request: Request, count: SampleCount = 10) -> Response:
    return _json(b"[" + b",".join(_generator(request).sample("events", count)) + b"]")


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
