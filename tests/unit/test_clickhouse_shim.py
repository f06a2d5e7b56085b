"""Arguments of requests to the embedded ClickHouse that no engine sees: what cannot be kept or repeated is refused."""

import asyncio
import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.local.clickhouse_shim import Reply, make_app


class _Engine:
    """Runs nothing, and says which format was asked for."""

    def execute(self, arguments: Mapping[str, str], body: bytes, default_format: str, read_only: bool) -> Reply:
        return Reply(b"1\n", default_format)


Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    app = make_app(tmp_path)  # its lifespan, which starts the real engine, does not run
    app.state.engine = _Engine()

    def ask(method: str, headers: Any = None, **arguments: str) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, "/", params={"query": "SELECT 1", **arguments}, headers=headers)

        return asyncio.run(asked())

    return ask


@pytest.mark.parametrize(
    "arguments",
    [
        *({"session_timeout": text} for text in ("x", "nan", "inf", "-1", "1e9", "3601", "\u0661", "", "9" * 5000)),
        *({"query_id": text} for text in ("\u20ac", "\u00e9", "a\r\nX-Forged: 1", "a\nb", "\x1b", " a", "a ")),
        *({"default_format": text} for text in ("\u20ac", "CSV\r\nX-Forged: 1", "CSV\n")),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_argument_that_cannot_be_kept_or_repeated_is_refused(
    ask: Ask, method: str, arguments: dict[str, str]
) -> None:
    reply = ask(method, session_id="s", **arguments)
    assert reply.status_code == 400
    assert reply.headers["X-ClickHouse-Exception-Code"] == "36"
    assert next(iter(arguments)) in reply.text
    assert "X-Forged" not in reply.headers


async def test_the_bytes_of_a_body_are_in_flight_until_the_reply(tmp_path: Path) -> None:
    app, noted = make_app(tmp_path), list[int]()

    class Noting(_Engine):
        def execute(self, arguments: Mapping[str, str], body: bytes, default_format: str, read_only: bool) -> Reply:
            noted.append(app.state.in_flight.bytes - len(body))
            return super().execute(arguments, body, default_format, read_only)

    app.state.engine = Noting()
    sent = gzip.compress(bytes(3_000_000))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        reply = await client.post("/", content=sent, headers={"Content-Encoding": "gzip"})
    assert (reply.status_code, noted, app.state.in_flight.bytes) == (200, [len(sent)], 0)


def test_a_format_in_a_header_is_checked_like_one_in_the_url(ask: Ask) -> None:
    assert ask("GET", headers={b"X-ClickHouse-Format": b"CSV\xe9"}).status_code == 400


def test_other_arguments_reach_the_engine(ask: Ask) -> None:
    reply = ask("POST", session_timeout="3600", query_id="my query-1", default_format="CSV")
    assert (reply.status_code, reply.text) == (200, "1\n")
    assert (reply.headers["X-ClickHouse-Query-Id"], reply.headers["X-ClickHouse-Format"]) == ("my query-1", "CSV")
    assert ask("POST").headers["X-ClickHouse-Query-Id"]
