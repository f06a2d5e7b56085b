"""How far the consumers of a process are behind their topics, as gauges."""

from collections.abc import Sequence
from threading import Event

from services.core.errors import LogpipeError
from services.runtime import logs
from services.stream_to_store.consumer import Consumer

_SECONDS = 5.0

_log = logs.get("stream_to_store")


def report(consumers: Sequence[Consumer], stop: Event) -> None:
    """Again and again, until `stop` is set."""
    while not stop.wait(_SECONDS):
        for consumer in consumers:
            try:
                consumer.report_lag()
            except LogpipeError as error:
                _log.warning("lag unknown", dataset=consumer.dataset.name, reason=str(error))
