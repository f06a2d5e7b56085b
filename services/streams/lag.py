"""Measures, in a worker of its own, how far the consumers of a process are behind their topics."""

from collections.abc import Callable, Mapping

from services.core.errors import LogpipeError
from services.runtime import logs
from services.runtime.workers import Worker

_SECONDS = 5.0


def lag_worker(room: str, reports: Mapping[str, Callable[[], None]]) -> Worker:
    """Return the thread that measures the lags, not started yet.

    `reports`: by dataset, the function that sets the gauge of its consumer. It blocks, and may raise LogpipeError.
    """
    log = logs.get(room)

    def measure() -> float:
        for dataset, report in reports.items():
            try:
                report()
            except LogpipeError as error:
                log.warning("lag not measured", dataset=dataset, reason=str(error))
        return _SECONDS

    return Worker("lag", measure, delay=_SECONDS)
