"""Waits for a condition. A machine that is busy with other tests makes no test fail."""

import time
from collections.abc import Callable
from typing import Any

# Spark has taken 100 s to start on a loaded machine. A wait that succeeds does not take longer because of this bound.
DEADLINE_SECONDS = 240


def until(
    condition: Callable[[], Any], about: Callable[[], Any] = lambda: "the condition did not come true in time"
) -> None:
    """Return when `condition` is true. After four minutes, fail with the message `about()`."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, about()
        time.sleep(0.02)
