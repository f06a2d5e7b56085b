"""Waiting for a component that is away when a process starts."""

from collections.abc import Callable
from threading import Event

from services.core.errors import StoreDown
from services.runtime import logs

_PAUSE_SECONDS = 2.0
_log = logs.get("patience")


def until_it_works(action: Callable[[], None], stop: Event, failed: Callable[[str], None]) -> bool:
    """Repeat `action` while it raises StoreDown, and tell `failed` the reason each time. False: `stop` came first."""
    while not stop.is_set():
        try:
            action()
            return True
        except StoreDown as error:
            _log.warning("waiting for a component that is away", reason=str(error))
            failed(str(error))
            stop.wait(_PAUSE_SECONDS)
    return False
