"""How far the consumers of a process are behind their topics, as gauges."""

from collections.abc import Sequence

from services.core.errors import LogpipeError
from services.runtime import logs
from services.stream_to_store.consumer import Consumer

SECONDS = 5.0

_log = logs.get("stream_to_store")


def report(consumers: Sequence[Consumer]) -> float:
    """The turn of a worker: measure once. Returns the seconds until the next time."""
    for consumer in consumers:
        try:
            consumer.report_lag()
        except LogpipeError as error:
            _log.warning("lag not measured", dataset=consumer.dataset.name, reason=str(error))
    return SECONDS
