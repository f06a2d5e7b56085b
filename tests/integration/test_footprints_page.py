"""The page /footprints in headless Chromium, over the query API's own routes and three stores in memory."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import httpx
import pytest
import uvicorn
from pydantic import SecretStr

from services.core.errors import StoreDown
from services.core.rows import Row
from tests.chromium import Page, chromium
from tests.traffic_api import FIRST_BATCH, TrafficApi, invented, request_row

PERIOD = "last=30d&zone=Asia/Seoul"
REQUESTS = 1200
HOSTILE = "/<img src=x onerror=alert(1)>"
PANELS = ("total", "statuses", "week", "endpoints", "durations")


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Page]]:
    with chromium(tmp_path_factory.mktemp("chromium")) as new_page:
        yield new_page


@pytest.fixture
def page(open_page: Callable[[], Page]) -> Iterator[Page]:
    opened = open_page()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def rows() -> Sequence[Row]:
    return invented(REQUESTS)


@contextmanager
def serving(api: TrafficApi) -> Iterator[str]:
    """Serve the app, and yield the address of the page."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(api.app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/footprints"
        finally:
            api.app.state.is_stopping = server.should_exit = True
            thread.join()


@pytest.fixture
def api(rows: Sequence[Row]) -> TrafficApi:
    return TrafficApi(rows)


@pytest.fixture
def url(api: TrafficApi) -> Iterator[str]:
    with serving(api) as address:
        yield address


def await_panels(page: Page, requests: int) -> None:
    page.until_text("#total .big", f"^{requests:,}$")
    page.until(lambda: page.read("document.querySelectorAll('[aria-busy=false]').length") == len(PANELS))


def address(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.read("location.href")).query, True).items()}


def test_the_figures_of_a_store(page: Page, url: str) -> None:
    page.open(f"{url}?{PERIOD}&store=postgres")
    await_panels(page, REQUESTS)

    def data(panel: str) -> list[dict[str, Any]]:
        traffic = f"{url.removesuffix('/footprints')}/api/query/postgres/footprints/traffic"
        found: list[dict[str, Any]] = httpx.get(f"{traffic}?{PERIOD}&panel={panel}").raise_for_status().json()["data"]
        return found

    assert page.texts("#endpoints .figure") == [f"{each['count']:,}" for each in data("endpoints")]
    assert page.texts("#statuses li b") == ["2xx", "3xx", "4xx", "5xx"]
    assert page.texts("#durations tbody .path") == [each["endpoint"] for each in data("durations")]
    assert page.read("document.querySelectorAll('.heatmap td[title]').length") == 7 * 24
    assert "Busiest: 01:1" in page.text("#week")  # the burst of the invented requests
    assert page.read("document.querySelector('.minutes canvas').width") > 300
    assert "Asia/Seoul, up to batch 7" in page.text("#period")
    assert page.texts(".took")[0].startswith("PostgreSQL, ")
    assert not page.complaints


def test_the_store_is_chosen_with_the_keyboard_and_the_address_follows(page: Page, url: str) -> None:
    page.open(f"{url}?{PERIOD}&store=postgres")
    await_panels(page, REQUESTS)
    page.read("document.querySelector('[name=store]:checked').focus()")
    page.press("ArrowRight")
    page.until_text("#durations .took", "^ClickHouse")
    assert address(page) == {"last": "30d", "zone": "Asia/Seoul", "store": "clickhouse"}
    page.read("history.back()")
    page.until_text("#durations .took", "^PostgreSQL")
    assert page.read("document.querySelector('[name=store]:checked').value") == "postgres"


def test_a_shared_link_shows_the_same(page: Page, open_page: Callable[[], Page], url: str) -> None:
    page.open(url)
    page.until_text("#period", "up to batch")
    page.read(
        """const {last, zone, start, end, store} = document.getElementById("controls").elements;
        last.value = ""; zone.value = "Asia/Seoul"; store.value = "hdfs";
        start.value = "2026-11-02T01:15:00"; end.value = "2026-11-02T01:18:00";"""
    )
    page.click("#controls [type=submit]")
    page.until_text("#durations .took", "^lake")
    shown = page.text("#period"), page.text("#total .big"), page.texts("#endpoints .figure")
    assert shown[0].startswith("2026-11-02 01:15:00 to 2026-11-02 01:18:00, Asia/Seoul")
    assert address(page)["start_time"] == "2026-11-01T16:15:00.000Z"
    other = open_page()
    other.open(page.read("location.href"))
    other.until_text("#durations .took", "^lake")
    assert (other.text("#period"), other.text("#total .big"), other.texts("#endpoints .figure")) == shown
    assert other.read("document.getElementById('controls').elements.start.value").startswith("2026-11-02T01:15")
    other.close()


def test_stores_side_by_side_that_agree_and_that_do_not(page: Page, api: TrafficApi, url: str) -> None:
    page.open(f"{url}?{PERIOD}&store=compare")
    await_panels(page, REQUESTS)
    assert page.texts(".times thead th") == ["", "PostgreSQL", "ClickHouse", "lake", "Equal"]
    assert page.texts(".times tbody td:last-child") == ["yes"] * len(PANELS)
    assert len(page.texts(".times tbody .fastest")) == len(PANELS)
    assert "As of batch 7" in page.text("#comparison")
    assert not page.texts(".version")
    api.clickhouse.write_rows(FIRST_BATCH - 1, [request_row(0, batch_id=FIRST_BATCH - 1)])
    page.click("#controls [type=submit]")
    page.until(lambda: page.texts(".times tfoot td:last-child") == ["no"])
    assert page.texts("#total h3") == ["PostgreSQL and lake", "ClickHouse"]
    assert page.texts("#total .big") == ["1,200", "1,201"]
    assert "The stores disagree" in page.text("#total [role=alert]")


def test_a_store_that_is_down(page: Page, api: TrafficApi, url: str) -> None:
    api.lake.down = StoreDown("hdfs", "connection refused")
    page.open(f"{url}?{PERIOD}&store=compare")
    await_panels(page, REQUESTS)
    assert page.texts(".times + .warned") == ["lake gave no result: hdfs: connection refused"]
    page.click("[name=store][value=hdfs]")
    page.until_text("#problem", "^hdfs: connection refused$")
    assert page.text("#total .body") == "No figures."
    page.click("[name=store][value=postgres]")
    await_panels(page, REQUESTS)
    assert page.text("#problem") == ""


def test_a_query_api_that_does_not_answer(page: Page, api: TrafficApi, url: str) -> None:
    page.open(f"{url}?{PERIOD}&store=postgres")
    await_panels(page, REQUESTS)
    page.call("Network.enable")
    page.call("Network.setBlockedURLs", urls=["*/api/*"])
    page.click("#controls [type=submit]")
    page.until_text("#problem", "^The query API does not answer")
    page.open(f"{url}?{PERIOD}&store=postgres&again")
    page.until_text("#problem", "^The query API does not answer")
    page.call("Network.setBlockedURLs", urls=[])
    page.click("#controls [type=submit]")
    await_panels(page, REQUESTS)
    assert page.text("#problem") == ""


def test_wrong_input_is_told_in_words(page: Page, url: str) -> None:
    page.open(f"{url}?{PERIOD}&store=postgres")
    await_panels(page, REQUESTS)
    page.read("document.getElementById('controls').elements.zone.value = 'Mars'")
    page.click("#controls [type=submit]")
    page.until_text("#problem", 'Unknown time zone "Mars"')
    page.open(f"{url}?last=2h&store=postgres")
    page.until_text("#problem", "last")
    page.open(f"{url}?last=24h&store=nowhere")
    page.until_text("#problem", "unknown store 'nowhere'; there are")


def test_a_live_page_follows_new_batches(page: Page, api: TrafficApi, url: str) -> None:
    page.open(f"{url}?{PERIOD}&store=compare&live")
    await_panels(page, REQUESTS)
    page.until_text("#note", "^Live: new batches")
    api.accept(FIRST_BATCH + 1, [request_row(0, batch_id=FIRST_BATCH + 1)])
    await_panels(page, REQUESTS + 1)
    assert "up to batch 8" in page.text("#period")
    page.click("#live")
    assert page.read("document.getElementById('live').ariaPressed") == "false"
    assert "live" not in address(page)


@pytest.mark.parametrize("store", ["postgres", "compare"])
def test_the_page_is_readable_at_400_pixels(page: Page, api: TrafficApi, url: str, store: str) -> None:
    long = [request_row(0, route="/api/" + "long" * 60, duration_ms=98_765.4, batch_id=FIRST_BATCH - 1)]
    api.clickhouse.write_rows(FIRST_BATCH - 1, long)
    api.postgres.write_rows(FIRST_BATCH - 1, long)
    page.resize(400)
    page.open(f"{url}?{PERIOD}&store={store}")
    page.until_text("#durations .body", "p95")
    wide = page.read(
        """[...document.querySelectorAll("main *")].filter(each => each.getBoundingClientRect().right > 401
        && !each.closest(".path")).map(each => each.outerHTML.slice(0, 80))"""
    )
    assert (page.read("document.documentElement.scrollWidth"), wide) == (400, [])


def test_heatmap_and_histogram_are_read_with_the_arrow_keys(page: Page, url: str) -> None:
    page.open(f"{url}?{PERIOD}&store=postgres")
    await_panels(page, REQUESTS)
    page.read("document.querySelector('.heatmap td[tabindex=\"0\"]').focus()")
    before = page.text(".heatmap + .told").removeprefix("Busiest: ")
    page.press("ArrowDown")
    page.press("ArrowUp")
    assert page.text(".heatmap + .told") == before
    page.press("ArrowRight")
    assert page.text(".heatmap + .told") != before
    page.read("document.querySelector('.minutes').focus()")
    page.press("ArrowLeft")
    page.press("ArrowRight")
    told = page.text(".minutes + .told")
    assert f"Busiest: {told}" in page.read("document.querySelector('.minutes').ariaLabel")


def test_dark_and_light(page: Page, url: str) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        page.open(f"{url}?{PERIOD}&store=postgres")
        await_panels(page, REQUESTS)
        grounds.add(page.read("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_the_text_of_a_row_is_no_markup(page: Page, open_page: Callable[[], Page]) -> None:
    with serving(TrafficApi([request_row(0, route=HOSTILE, method="<b>")])) as url:
        page.open(f"{url}?{PERIOD}&store=postgres")
        await_panels(page, 1)
        assert page.texts("#endpoints .path") == page.texts("#durations .path") == [HOSTILE]
        assert page.texts("#endpoints .method") == ["<b>"]
        assert page.read("document.querySelectorAll('main img').length") == 0
        assert not page.complaints


def test_nothing_stored(page: Page) -> None:
    with serving(TrafficApi([])) as url:
        page.open(f"{url}?{PERIOD}&store=compare")
        await_panels(page, 0)
        assert "No requests in this period." in page.text("#week")


def test_the_token_is_asked_for(page: Page, rows: Sequence[Row]) -> None:
    with serving(TrafficApi(rows, token=SecretStr("secret"))) as url:
        page.open(f"{url}?{PERIOD}&store=postgres&live")
        for token in ("wrong", "secret"):
            page.until(lambda: page.read("document.getElementById('token')?.open"))
            page.read(f"document.querySelector('[name=token]').value = '{token}'")
            page.click("#token button")
        await_panels(page, REQUESTS)
        page.until_text("#note", "^Live: new batches")


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("2026-11-20T01:15:00", "Asia/Seoul"),
        ("2026-06-01T00:00:00", "Europe/Berlin"),
        ("2026-10-25T01:59:59", "Europe/Berlin"),
        ("2026-10-25T03:00:00", "Europe/Berlin"),
        ("2026-04-05T01:29:59", "Australia/Lord_Howe"),
        ("2026-04-05T02:00:00", "Australia/Lord_Howe"),
        ("2026-01-31T12:00:00", "America/New_York"),
        ("2026-01-31T12:00:00", "Asia/Kathmandu"),
    ],
)
def test_times_of_the_controls_are_those_of_the_zone(page: Page, url: str, text: str, zone: str) -> None:
    page.open(url)
    page.until_text("#period", "up to batch")
    instant = page.read(f"import('{url}/zone.js').then(({{instant}}) => instant('{text}', '{zone}'))")
    assert datetime.fromisoformat(instant) == datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))
    assert page.read(f"import('{url}/zone.js').then(({{clock}}) => clock('{instant}', '{zone}'))") == text
