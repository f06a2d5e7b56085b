"""Alive and ready, as Kubernetes asks: /healthz says the process runs, /readyz that it can do its work."""

from collections.abc import Callable

Check = Callable[[], str | None]
"""Returns what is wrong in a few words, or None when all is well. Quick; called at each /readyz."""


class Readiness:
    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def add(self, name: str, check: Check) -> None:
        self._checks[name] = check

    def problems(self) -> dict[str, str]:
        """Name of each failing check -> what is wrong. Empty: ready."""
        found = {}
        for name, check in self._checks.items():
            if problem := check():
                found[name] = problem
        return found
