"""What a web page of another site can do with our listeners: nothing. The requests are those that browsers send."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from services.ingest_api.settings import IngestSettings
from services.runtime.health import Readiness
from services.runtime.http import make_app
from services.runtime.settings import CrossOriginSettings, ListenSettings
from tests.unit.test_docs import all_settings

HERE = "127.0.0.1:8081"
EVIL = "http://evil.example"
SHOP = "https://shop.example.org"
TOKEN = "0123456789abcdef"

# What Chromium sends from a page of http://evil.example, by what the page does.
IMAGE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
NO_CORS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "empty"}
FETCH = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "Origin": EVIL}
FRAME = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
FORM = {**LINK, "Origin": EVIL, "Content-Type": "text/plain"}
SANDBOXED_FORM = {**FORM, "Origin": "null"}
BEACON = {**NO_CORS, "Origin": EVIL, "Content-Type": "text/plain;charset=UTF-8"}
WEB_SOCKET = {
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "websocket",
    "Sec-Fetch-Dest": "empty",
    "Origin": EVIL,
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
PREFLIGHT = {**FETCH, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
OTHER_PORT = {**BEACON, "Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:9999"}
BEFORE_FETCH_METADATA = {"Origin": EVIL, "Content-Type": "text/plain"}  # as plain http beyond loopback is today


class Listener:
    """An application with a value that a POST changes, as this process would serve it at HERE."""

    def __init__(self, **settings: Any) -> None:
        self.value = 0
        router = APIRouter()

        @router.get("/value")
        async def read() -> dict[str, int]:
            return {"value": self.value}

        @router.post("/value")
        async def change() -> dict[str, int]:
            self.value += 1
            return {"value": self.value}

        @router.get("/stream")
        async def stream() -> StreamingResponse:
            async def rows() -> AsyncIterator[bytes]:
                while True:
                    self.value += 1
                    yield b"row\n"

            return StreamingResponse(rows(), media_type="text/csv", headers={"X-Seed": "7"})

        settings = {"allowed_hosts": "", "allowed_origins": "", **settings}
        app = make_app(
            "test", CrossOriginSettings(**settings), [router], _no_lifespan, Readiness(), frozenset({"/alive"})
        )
        self._transport = httpx.ASGITransport(app)

    async def ask(self, method: str, path: str, headers: dict[str, str], host: str = HERE) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url=f"http://{HERE}") as client:
            return await client.request(method, path, headers={"Host": host, **headers})


@asynccontextmanager
async def _no_lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.fixture
def listener() -> Listener:
    return Listener()


def is_refused(reply: httpx.Response, status: int) -> bool:
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["status"] == status
    assert "access-control-allow-origin" not in reply.headers
    return reply.status_code == status


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", IMAGE),
        ("GET", NO_CORS),
        ("GET", FETCH),
        ("GET", FRAME),
        ("GET", WEB_SOCKET),
        ("POST", FORM),
        ("POST", SANDBOXED_FORM),
        ("POST", BEACON),
        ("POST", FETCH),
        ("POST", OTHER_PORT),
        ("POST", BEFORE_FETCH_METADATA),
        ("OPTIONS", PREFLIGHT),
    ],
)
async def test_a_page_of_another_origin_is_refused(listener: Listener, method: str, headers: dict[str, str]) -> None:
    assert is_refused(await listener.ask(method, "/value", headers), 403)
    assert listener.value == 0


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", "localhost@evil.example", ""]
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_a_name_that_was_rebound_to_this_machine_is_refused(listener: Listener, method: str, host: str) -> None:
    """After DNS rebinding the page and the listener have one origin; only the name differs from ours."""
    same_origin = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    for headers in (same_origin, {**same_origin, "Origin": f"http://{host}"}, {}):
        reply = await listener.ask(method, "/value", headers, host)
        assert reply.status_code == 421
        assert method == "HEAD" or is_refused(reply, 421)
    assert listener.value == 0


@pytest.mark.parametrize("host", [HERE, "127.0.0.1", "localhost:9", "LocalHost.", "[::1]:8081"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {
            "Sec-Fetch-Site": "same-origin",
            "Sec-Fetch-Mode": "cors",
            "Sec-Fetch-Dest": "empty",
            "Origin": "http://proxy",
        },
    ],
    ids=["tool", "typed address", "own page"],
)
async def test_tools_and_our_own_pages_work(listener: Listener, headers: dict[str, str], host: str) -> None:
    assert (await listener.ask("GET", "/value", headers, host)).json() == {"value": 0}
    assert (await listener.ask("POST", "/value", headers, host)).json() == {"value": 1}


async def test_our_own_page_works_in_a_browser_that_sends_no_fetch_metadata(listener: Listener) -> None:
    assert (await listener.ask("POST", "/value", {"Origin": f"http://{HERE}"})).status_code == 200


async def test_a_link_of_another_site_to_a_page_works(listener: Listener) -> None:
    assert (await listener.ask("GET", "/value", LINK)).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_probes_and_scrapes_come_by_any_host(listener: Listener, method: str, path: str) -> None:
    reply = await listener.ask(method, path, {}, "10.1.2.3.nip.example:8081")
    assert reply.status_code == 200
    assert (reply.content == b"") == (method == "HEAD")
    assert (await listener.ask("POST", path, {}, "evil.example")).status_code == 421


async def test_further_hosts_are_named(listener: Listener) -> None:
    named = Listener(allowed_hosts="Ingest-API, logs.example.org", host="10.0.0.5", token=TOKEN)
    for host in ("ingest-api:8081", "logs.example.org", "10.0.0.5:8081", "localhost:8081"):
        assert (await named.ask("GET", "/value", {}, host)).status_code == 200
    for host in ("10.0.0.6:8081", "other.example.org"):
        assert (await named.ask("GET", "/value", {}, host)).status_code == 421


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
async def test_bound_to_all_addresses_any_address_is_a_host(bound: str) -> None:
    everywhere = Listener(host=bound, token=TOKEN)
    for host in ("10.0.0.6:30801", "[fd00::5]:30801"):
        assert (await everywhere.ask("GET", "/value", {}, host)).status_code == 200
    for host in ("evil.example:30801", "10.0.0.6.evil.example"):
        assert (await everywhere.ask("GET", "/value", {}, host)).status_code == 421


async def test_pages_of_a_configured_origin_may_call() -> None:
    listener = Listener(allowed_origins=f"{SHOP}, http://127.0.0.1:9999")
    preflight = {
        **PREFLIGHT,
        "Origin": SHOP,
        "Access-Control-Request-Headers": "content-type,idempotency-key,authorization",
        "Access-Control-Request-Private-Network": "true",
    }
    reply = await listener.ask("OPTIONS", "/value", preflight)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == SHOP
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "idempotency-key" in reply.headers["access-control-allow-headers"]
    assert reply.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in reply.headers
    reply = await listener.ask("POST", "/value", {**FETCH, "Origin": SHOP})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, SHOP)
    assert (await listener.ask("POST", "/value", OTHER_PORT)).status_code == 200
    for method, headers in (("OPTIONS", PREFLIGHT), ("POST", FETCH), ("GET", IMAGE)):
        assert is_refused(await listener.ask(method, "/value", headers), 403)


def test_only_the_ingest_api_may_be_called_by_pages_of_a_configured_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is in the environment of every process, and such a page may send any request."""
    all_settings()  # imports the settings of every process
    monkeypatch.setenv("LOGPIPE_ALLOWED_ORIGINS", SHOP)
    kinds = [ListenSettings]
    for kind in kinds:
        kinds += kind.__subclasses__()
    honouring = {kind for kind in kinds if kind().origins}
    assert len(kinds) > 6
    assert honouring == {CrossOriginSettings, IngestSettings}


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_hosts": "logs.example.org:8081"},
        {"allowed_hosts": "http://logs.example.org"},
        {"allowed_hosts": "*"},
        {"allowed_origins": "*"},
        {"allowed_origins": "shop.example.org"},
        {"allowed_origins": f"{SHOP}/"},
    ],
)
def test_a_setting_that_would_never_match_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is not"):
        CrossOriginSettings(**settings)


async def test_head_is_answered_as_get_is(listener: Listener) -> None:
    got, head = await listener.ask("GET", "/value", {}), await listener.ask("HEAD", "/value", {})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == got.headers
    assert (await listener.ask("HEAD", "/nowhere", {})).status_code == 404


async def test_head_of_a_stream_ends(listener: Listener) -> None:
    reply = await listener.ask("HEAD", "/stream", {})
    assert (reply.status_code, reply.headers["x-seed"], reply.content) == (200, "7", b"")


async def test_options_that_is_no_preflight_names_the_methods(listener: Listener) -> None:
    reply = await listener.ask("OPTIONS", "/value", {})
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET")
