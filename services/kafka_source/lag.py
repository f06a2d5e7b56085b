"""How far the source is behind the end of its topic, as a gauge."""

from services.core.errors import LogpipeError
from services.kafka_source.source import SourceHandler
from services.runtime import logs

SECONDS = 5.0

_log = logs.get("kafka_source")


def report(handler: SourceHandler) -> float:
    """The turn of a worker: measure once. Returns the seconds until the next time."""
    try:
        handler.report_lag()
    except LogpipeError as error:
        _log.warning("lag not measured", reason=str(error))
    return SECONDS
