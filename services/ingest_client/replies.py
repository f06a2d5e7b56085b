"""What a reply of the ingest API means, as a result or as one of `core/errors.py`."""

from contextlib import suppress
from typing import Any

import msgspec

from services.core.errors import (
    Backpressure,
    Conflict,
    Invalid,
    InvalidRow,
    KeyReused,
    LogpipeError,
    Malformed,
    NotFound,
    OtherLedger,
    RequestTimeout,
    StoreDown,
    TooLarge,
    Unauthorized,
    UnsupportedMedia,
)

INGEST = "ingest"  # the name of the ingest API in errors

_BY_STATUS: dict[int, type[LogpipeError]] = {
    error.status: error
    for error in (Malformed, NotFound, RequestTimeout, Conflict, OtherLedger, TooLarge, UnsupportedMedia, Invalid)
}
_MAX_CHARACTERS = 300  # of a reply that is no problem document, such as a proxy's page


class Accepted(msgspec.Struct, frozen=True):
    """The rows of a request are stored. `duplicate`: by an earlier request with the same key.

    `batch_id`: the first batch that has rows of the request; 0 from a release that does not name it.
    """

    duplicate: bool = False
    batch_id: int = 0


def accepted(content: bytes) -> Accepted:
    """Return what a reply of 200 says. Raises LogpipeError when `content` is not what the ingest API sends."""
    try:
        return msgspec.json.decode(content, type=Accepted)
    except msgspec.MsgspecError as error:
        raise LogpipeError("the reply is 200, but it is not a reply of the ingest API: check the URL") from error


def error_of(status: int, retry_after: str | None, content: bytes) -> LogpipeError:
    """Return the error that a reply other than 200 stands for. `retry_after`: its header, None without one."""
    problem: dict[str, Any] = {}
    with suppress(msgspec.MsgspecError):  # a proxy between the client and the ingest API replies in its own words
        problem = msgspec.json.decode(content, type=dict[str, Any])
    detail = str(problem.get("detail") or content[:_MAX_CHARACTERS].decode(errors="replace")).strip()
    if status == 429 or (status == 503 and retry_after is not None):
        return Backpressure(f"{INGEST}: {status} {detail}", _seconds(retry_after))
    if status >= 500:
        return StoreDown(INGEST, f"{status} {detail}")
    refusal = f"ingest refuses the request: {detail}"
    if status in (401, 403):
        return Unauthorized(f"{refusal} (LOGPIPE_TOKEN is the token that is sent)")
    if status == 422 and problem.get("title") == KeyReused.title:
        return KeyReused(refusal)
    if status == 422 and isinstance(index := problem.get("index"), int):
        return InvalidRow(index, str(problem.get("field", "")), detail.partition(": ")[2] or detail)
    if status in _BY_STATUS:
        return _BY_STATUS[status](refusal)
    return LogpipeError(f"{INGEST}: unexpected reply {status} {detail}")


def _seconds(retry_after: str | None) -> float:
    try:
        return float(retry_after or "")
    except ValueError:  # no header, or a date
        return 1.0
