"""The rules by which a request to the ingest API is repeated.

    the attempt ended with         repeated   its rows may be stored
    no connection (Unreachable)    yes        no
    408, 429, 503 + Retry-After    yes        no: refused before any row was written
    409 (Conflict)                 yes        yes: the first request with this key still runs
    5xx, a lost reply (StoreDown)  yes        yes: the failure may have come after the commit
    any other error                no         no

Every attempt of a request has the same Idempotency-Key, so that a repetition stores no row twice.

The loop is written here and not taken from stamina or tenacity, because patience counts from the first failure, not
from the first attempt: on a slow link one attempt can last longer than all of the patience. Both libraries would need
a stop rule, a wait rule and a record of doubt of our own, which is all that this loop consists of; stamina would also
log each repetition into the output of `logpipe send`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.core.backoff import Backoff
from services.core.errors import (
    Backpressure,
    Conflict,
    LogpipeError,
    RequestTimeout,
    StoreDown,
    Undelivered,
    Unreachable,
)

BACKOFF = Backoff(0.05, 2.0)
"""The pauses between two attempts, unless the server names a longer one."""

_REPEATED = (Backpressure, Conflict, RequestTimeout, StoreDown)
_NOT_STORED = (Backpressure, RequestTimeout, Unreachable)

Result = TypeVar("Result")
OnRetry = Callable[[LogpipeError], None]


async def retried(attempt: Callable[[], Awaitable[Result]], patience: float, on_retry: OnRetry | None = None) -> Result:
    """Return the result of the first `attempt` that succeeds.

    Called on the event loop by the client. `patience`: seconds to go on after the first failure. `on_retry` is called
    with each failure that another attempt follows, before the pause.

    Raises the error of an attempt that must not be repeated, and Undelivered when the patience has run out.
    """
    failures, give_up, in_doubt = 0, 0.0, False
    while True:
        try:
            return await attempt()
        except _REPEATED as error:
            now = time.monotonic()
            give_up = give_up or now + patience
            in_doubt = in_doubt or not isinstance(error, _NOT_STORED)
            failures += 1
            pause = BACKOFF.pause(failures)
            if isinstance(error, Backpressure):
                pause = max(BACKOFF.first, error.retry_after)
            if now + pause > give_up:
                raise Undelivered(f"gave up after {patience:g} s: {error}", in_doubt=in_doubt) from error
            if on_retry:
                on_retry(error)
        await asyncio.sleep(pause)
