"""The API of the dashboard of requests: parameters, replies, errors, events, and the files of its page."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import SecretStr

from services.core.dataset import Dataset
from services.core.errors import Backpressure, QueryTimeout, StoreDown
from services.core.instants import DAY, from_datetime, to_datetime
from services.datasets.footprints import DATASET
from services.query_api import changes as changes_module
from services.query_api import footprints_page, traffic_parameters
from services.query_api.changes import Changes
from services.runtime.http import SHUTDOWN_SECONDS
from tests.traffic_api import NOW, StoreInMemory, TrafficApi, request_row
from tests.waiting import until

HOUR = DAY // 24


@pytest.fixture
def api() -> TrafficApi:
    rows = [
        request_row(0, NOW - 1, status=200.0, duration_ms=1.0),
        request_row(1, NOW - 2, status=404.0, duration_ms=3.0),
        request_row(2, NOW - HOUR, "POST", "", "/wp-admin/1.php", None, None),
        request_row(3, NOW - 40 * DAY, status=500.0),
    ]
    return TrafficApi(rows)


def fetch(api: TrafficApi, path: str, **parameters: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, params=parameters)

    return asyncio.run(send())


def get(api: TrafficApi, path: str, status: int = 200, **parameters: Any) -> dict[str, Any]:
    reply = fetch(api, f"/api/query/{path}", **parameters)
    assert reply.status_code == status, reply.text
    body: dict[str, Any] = reply.json()
    return body


def data(api: TrafficApi, panel: str, **parameters: Any) -> Any:
    return get(api, "postgres/footprints/traffic", panel=panel, **parameters)["data"]


def test_a_panel_says_what_it_is_about(api: TrafficApi) -> None:
    reply = get(api, "postgres/footprints/traffic", panel="total", zone="Asia/Seoul", last="1h")
    assert reply.pop("query_time_ms") <= reply.pop("total_ms")
    assert reply == {
        "source": "postgresql",
        "as_of": 7,
        "method": "scan",
        "scanned": {"rows": 4},
        "panel": "total",
        "zone": "Asia/Seoul",
        "start_time": "2026-11-20T05:30:00.000000+00:00",
        "end_time": "2026-11-20T06:30:00.000000+00:00",
        "data": {"count": 3},
    }


def test_every_panel(api: TrafficApi) -> None:
    assert data(api, "total") == {"count": 3}
    week = data(api, "week", zone="Asia/Seoul")
    assert [
        (day, hour, n) for day, hours in enumerate(week["by_weekday_and_hour"]) for hour, n in enumerate(hours) if n
    ] == [
        (4, 14, 1),
        (4, 15, 2),
    ]
    assert {minute: n for minute, n in enumerate(week["by_minute_of_day"]) if n} == {14 * 60 + 30: 1, 15 * 60 + 29: 2}
    search, probe = {"method": "GET", "endpoint": "/api/search"}, {"method": "POST", "endpoint": "/wp-admin/1.php"}
    assert data(api, "endpoints") == [{**search, "count": 2}, {**probe, "count": 1}]
    assert data(api, "endpoints", limit=1) == [{**search, "count": 2}]
    assert data(api, "statuses") == [
        {"class": "2xx", "count": 1},
        {"class": "4xx", "count": 1},
        {"class": "none", "count": 1},
    ]
    assert data(api, "durations") == [{**search, "count": 2, "p50_ms": 1.0, "p95_ms": 3.0, "p99_ms": 3.0}]


@pytest.mark.parametrize(
    ("parameters", "start", "end"),
    [
        ({}, NOW - DAY, NOW),
        ({"last": "15m"}, NOW - HOUR // 4, NOW),
        ({"last": "365d"}, NOW - 365 * DAY, NOW),
        ({"start_time": "2026-11-01"}, from_datetime(datetime.fromisoformat("2026-11-01T00:00Z")), NOW),
        ({"start_time": "5", "end_time": "6"}, 5_000_000, 6_000_000),
        ({"start_time": "2099-01-01"}, *[from_datetime(datetime.fromisoformat("2099-01-01T00:00Z"))] * 2),
    ],
)
def test_the_period(api: TrafficApi, parameters: dict[str, Any], start: int, end: int) -> None:
    reply = get(api, "postgres/footprints/traffic", panel="total", **parameters)
    period = [datetime.fromisoformat(reply[name]) for name in ("start_time", "end_time")]
    assert period == [to_datetime(start), to_datetime(end)]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"panel": "none"}, "panel"),
        ({}, "panel"),
        ({"panel": "week", "zone": "Mars/Olympus"}, "unknown time zone 'Mars/Olympus'"),
        ({"panel": "total", "last": "2h"}, "last"),
        ({"panel": "total", "last": "1h", "start_time": "5"}, "last"),
        ({"panel": "total", "end_time": "5"}, "start_time"),
        ({"panel": "total", "start_time": "6", "end_time": "5"}, "end_time is before start_time"),
        ({"panel": "total", "start_time": "0"}, "3660 days"),
        ({"panel": "total", "limit": 101}, "limit"),
        ({"panel": "total", "level": "x"}, "unknown: level"),
        ({"panel": "total", "as_of": 8}, "as_of: 8 is not reached yet"),
        ({"panel": "total", "engine": "x"}, "unknown engine"),
    ],
)
def test_what_is_refused(api: TrafficApi, parameters: dict[str, Any], told: str) -> None:
    assert told in get(api, "postgres/footprints/traffic", 422, **parameters)["detail"]


def test_filters(api: TrafficApi) -> None:
    assert data(api, "total", footprint_method="POST") == {"count": 1}
    assert data(api, "total", route="/api/search", service="shop") == {"count": 2}
    assert data(api, "total", service="other") == {"count": 0}


def test_all_stores_are_compared(api: TrafficApi) -> None:
    reply = get(api, "compare/footprints/traffic", panel="total", last="365d")
    assert reply["answers_agree"] is True
    results = {source: result["data"]["count"] for source, result in reply["results"].items()}
    assert results == {"postgresql": 4, "clickhouse": 4, "hdfs": 4}
    api.lake.forget_rows(DATASET)
    api.clickhouse.down = StoreDown("clickhouse", "connection refused")
    reply = get(api, "compare/footprints/traffic", panel="total")
    assert reply["answers_agree"] is False
    assert reply["missing"] == {"clickhouse": "clickhouse: connection refused"}
    assert {source: result["data"]["count"] for source, result in reply["results"].items()} == {
        "postgresql": 3,
        "hdfs": 0,
    }


def test_a_store_that_fails(api: TrafficApi) -> None:
    api.lake.down = StoreDown("hdfs", "connection refused")
    assert get(api, "hdfs/footprints/traffic", 503, panel="total")["store"] == "hdfs"
    api.lake.down = QueryTimeout("hdfs", 5.0)
    assert "no result within 5 s" in get(api, "hdfs/footprints/traffic", 504, panel="week")["detail"]
    assert "unknown store" in get(api, "none/footprints/traffic", 422, panel="total")["detail"]


def test_the_stores_and_their_names(api: TrafficApi) -> None:
    stores = get(api, "stores")["stores"]
    assert [store["label"] for store in stores] == ["PostgreSQL", "ClickHouse", "lake"]
    assert stores[0] == {"route": "postgres", "source": "postgresql", "label": "PostgreSQL"}


def test_figures_need_the_token_and_the_page_does_not() -> None:
    api = TrafficApi([], host="0.0.0.0", token=SecretStr("secret"), allowed_hosts="localhost")
    for path in ("postgres/footprints/traffic?panel=total", "stores", "compare/footprints/changes"):
        assert fetch(api, f"/api/query/{path}").status_code == 401
    assert fetch(api, "/footprints").status_code == 200


async def _events(api: TrafficApi, changes: Changes, route: str | None) -> AsyncIterator[tuple[str, Any]]:
    request = Request({"type": "http", "app": api.app})
    reply = changes.stream(request, api.app.state.service, route)
    assert isinstance(reply, StreamingResponse)
    assert reply.media_type == "text/event-stream"
    async with aclosing(reply.body_iterator) as texts:  # type: ignore[type-var]
        async for text in texts:
            assert isinstance(text, str)
            if text.startswith(":"):
                yield "comment", None
            else:
                name, values = text.removesuffix("\n\n").split("\n")
                yield name.removeprefix("event: "), json.loads(values.removeprefix("data: "))


@pytest.mark.parametrize("route", [None, "postgres"])
async def test_events_tell_of_new_batches_and_of_problems(
    api: TrafficApi, route: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "_POLL_SECONDS", 0.0)
    async with aclosing(_events(api, Changes(DATASET), route)) as events:  # type: ignore[type-var]
        assert await anext(events) == ("as_of", {"as_of": 7})
        api.accept(8, [])
        assert await anext(events) == ("as_of", {"as_of": 8})
        monkeypatch.setattr(api.watermarks, "of", _refuse)
        name, told = await anext(events)
        assert name == "problem"
        assert "connection refused" in told["detail"]
        monkeypatch.setattr(changes_module, "_SILENT_SECONDS", -1.0)
        assert await anext(events) == ("comment", None)
        api.app.state.is_stopping = True
        assert [event async for event in events] == []


def _refuse(reader: StoreInMemory, dataset: Dataset) -> int:
    raise StoreDown(reader.name, "connection refused")


async def test_the_number_of_listeners_is_bounded(api: TrafficApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "STREAMS", 1)
    changes = Changes(DATASET)
    async with aclosing(_events(api, changes, None)) as events:  # type: ignore[type-var]
        await anext(events)
        with pytest.raises(Backpressure, match="listen to changes already"):
            await anext(_events(api, changes, None))
    await anext(_events(api, changes, None))


def test_a_client_that_listens_does_not_delay_the_end_of_the_process(unused_tcp_port: int) -> None:
    run = f"serve(TrafficApi([]).app, '127.0.0.1', {unused_tcp_port})"
    code = f"from services.runtime.http import serve\nfrom tests.traffic_api import TrafficApi\n{run}"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) as process:
        try:
            url = f"http://127.0.0.1:{unused_tcp_port}"
            until(lambda: _answers(f"{url}/health"))
            with httpx.stream("GET", f"{url}/api/query/compare/footprints/changes", timeout=60) as reply:
                lines = reply.iter_lines()
                assert next(lines) == "event: as_of"
                process.terminate()
                assert process.wait(SHUTDOWN_SECONDS / 2) == 0
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def test_the_files_of_the_page(api: TrafficApi) -> None:
    reply = fetch(api, "/footprints")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert fetch(api, "/footprints/uplot/uPlot.esm.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert "MIT License" in fetch(api, "/footprints/uplot/LICENSE").text
    assert fetch(api, "/footprints/none.js").status_code == 404
    assert fetch(api, "/footprints/..%2fmain.py").status_code == 404


def test_the_page_takes_nothing_from_elsewhere() -> None:
    """The policy would block it, and the page would be broken where there is no Internet."""
    for file in (Path(footprints_page.__file__).parent / "page").iterdir():
        if file.is_file():
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert not [word for word in ("http://", "https://", "style=", "onclick=") if word in text], file


def test_the_longest_relative_period_is_accepted() -> None:
    assert max(traffic_parameters._PERIODS.values()) <= traffic_parameters.MAX_PERIOD_DAYS * DAY
