"""Errors as replies: application/problem+json (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse


def problem(
    status: int, detail: str, title: str = "", headers: dict[str, str] | None = None, **extra: Any
) -> JSONResponse:
    """`extra` are members of the body beside the standard ones."""
    title = title or HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **extra}
    return JSONResponse(body, status, headers, media_type="application/problem+json")
