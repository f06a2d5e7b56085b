"""Errors as replies: application/problem+json (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

MAX_DETAIL_CHARACTERS = 4000
"""Characters of the detail of an error: a detail may list many parameters of the request."""


def problem(
    status: int, detail: str, title: str = "", headers: dict[str, str] | None = None, **extra: Any
) -> JSONResponse:
    """`extra` are members of the body beside the standard ones."""
    title = title or HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail[:MAX_DETAIL_CHARACTERS], **extra}
    return JSONResponse(body, status, headers, media_type="application/problem+json")
