"""When the alerts or the counts of a service may change next, so that all other services cost nothing."""

import heapq


class Agenda:
    """The services of one partition, by the seconds at which they are due."""

    def __init__(self) -> None:
        self._services: dict[int, set[str]] = {}
        self._seconds: list[int] = []  # the keys of `_services`, as a heap

    def add(self, second: int, service: str) -> None:
        if second not in self._services:
            self._services[second] = set()
            heapq.heappush(self._seconds, second)
        self._services[second].add(service)

    def take(self, until: int) -> set[str]:
        """Remove the services that are due before second `until`, and return them."""
        due = set[str]()
        while self._seconds and self._seconds[0] < until:
            due |= self._services.pop(heapq.heappop(self._seconds))
        return due
