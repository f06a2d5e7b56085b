"""Whether a process of ours records footprints of its requests, and with which settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from request_footprints import FootprintMiddleware

from services.core.errors import NeedsOperator
from services.runtime.health import Readiness
from services.runtime.http import make_app
from services.runtime.settings import ListenSettings


@asynccontextmanager
async def nothing(app: FastAPI) -> AsyncIterator[None]:
    yield


def settings_of_footprints() -> Any:
    """What the middleware of an app is given; None if the app has none."""
    app = make_app("Query API", ListenSettings(), [], nothing, Readiness())
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
    assert settings_of_footprints() == {
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
