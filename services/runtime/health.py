"""Alive and ready, as Kubernetes asks: /healthz says that the process runs, /readyz that it can serve."""

from collections.abc import Callable

from services.core import metric_names
from services.runtime import metrics

Check = Callable[[], str | None]
"""Returns what is wrong in a few words, or None when all is well. Quick.

Called at each /readyz; a degraded check also at each /metrics.
"""


class Readiness:
    """The health checks of one process. Thread-safe once all checks are added."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._degraded: dict[str, Check] = {}

    def add(self, name: str, check: Check, *, degraded: bool = False) -> None:
        """A failing check means that the process cannot serve; with `degraded`, that it serves less than it should."""
        (self._degraded if degraded else self._checks)[name] = check

    def failing(self) -> dict[str, str]:
        """Name of each failing check that keeps the process from serving -> what is wrong. Empty: ready."""
        return _failing(self._checks)

    def degraded(self) -> dict[str, str]:
        """Name of each failing check of the others -> what is wrong; also written to the gauge."""
        found = _failing(self._degraded)
        for name in self._degraded:
            metrics.gauge(metric_names.DEGRADED, name).set(name in found)
        return found


def _failing(checks: dict[str, Check]) -> dict[str, str]:
    return {name: problem for name, check in checks.copy().items() if (problem := check())}
