"""Whether a process of ours records footprints of its requests, and with which settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from pydantic import SecretStr
from request_footprints import FootprintMiddleware

from services.core.errors import NeedsOperator
from services.runtime.health import Readiness
from services.runtime.http import make_app, needs
from services.runtime.settings import ListenSettings
from tests.footprint_apps import Client, Recorded


@asynccontextmanager
async def nothing(app: FastAPI) -> AsyncIterator[None]:
    yield


def settings_of_footprints() -> Any:
    """What the middleware of an app is given; None if the app has none."""
    return arguments_of_footprints(make_app("Query API", ListenSettings(), [], nothing, Readiness()))


def arguments_of_footprints(app: FastAPI) -> Any:
    middleware: list[Any] = list(app.user_middleware)
    return next((each.kwargs for each in middleware if each.cls is FootprintMiddleware), None)


def test_footprints_are_off_by_default() -> None:
    assert settings_of_footprints() is None


def test_footprints_go_to_the_kafka_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_FOOTPRINTS", "true")
    monkeypatch.setenv("LOGPIPE_KAFKA_URL", "kafka:9093")
    monkeypatch.setenv("LOGPIPE_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("LOGPIPE_KAFKA_USERNAME", "logpipe")
    monkeypatch.setenv("LOGPIPE_KAFKA_PASSWORD", "hidden")
    arguments = settings_of_footprints()
    del arguments["accepts"]
    assert arguments == {
        "service": "query-api",
        "kafka": "kafka:9093",
        "kafka_config": {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": "logpipe",
            "sasl.password": "hidden",
        },
    }


def test_a_user_without_a_password_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_FOOTPRINTS", "true")
    monkeypatch.setenv("LOGPIPE_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    with pytest.raises(NeedsOperator, match="LOGPIPE_KAFKA_PASSWORD"):
        settings_of_footprints()


async def test_only_a_client_that_may_call_a_route_leaves_a_footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_FOOTPRINTS", "true")
    routes, token = APIRouter(), (b"authorization", b"Bearer right")

    @routes.get("/items", dependencies=[needs("control")])
    async def items(fails: bool = False) -> str:
        if fails:
            raise ValueError("a bug")
        return "item"

    @routes.get("/page")
    async def page() -> str:
        return "page"

    app = make_app("Query API", ListenSettings(token=SecretStr("right")), [routes], nothing, Readiness())
    recorded = arguments_of_footprints(app)["open_producer"] = Recorded()
    client, own = Client(app), (b"host", b"localhost")
    async with client.running():
        assert await client.get("/items", headers=[own]) == 401
        assert await client.get("/items", headers=[own, (b"authorization", b"Bearer wrong")]) == 401
        assert await client.get("/items", headers=[own, token, (b"origin", b"http://elsewhere.example")]) == 403
        assert await client.get("/items", headers=[(b"host", b"elsewhere.example"), token]) == 421
        assert await client.get("/nothing/here", headers=[own, token]) == 404
        assert await client.get("/page", headers=[own]) == 200
        assert await client.get("/items", query_string=b"", headers=[own, token]) == 200
        with pytest.raises(ValueError, match="a bug"):
            await client.get("/items", query_string=b"fails=true", headers=[own, token])
    assert [each["status"] for each in recorded.wait_for(2)] == [200, 500]
