"""What became of the footprints: for the app by `counts()`, and for Prometheus if prometheus_client is installed."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol
from weakref import WeakSet


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the requests that the middleware noted since the start of the process. All but `waiting` never fall."""

    delivered: int = 0
    """Messages that Kafka has taken."""

    excluded: int = 0
    """Requests whose path the patterns leave out."""

    queue_full: int = 0
    """Dropped, because as many requests as `queue` allows waited."""

    undelivered: int = 0
    """Dropped, because Kafka did not take the message in time, or not before the shutdown."""

    failed: int = 0
    """Dropped, because of a wrong configuration of Kafka's client, or of a bug."""

    waiting: int = 0
    """On the way to Kafka."""

    @property
    def dropped(self) -> int:
        return self.queue_full + self.undelivered + self.failed

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Counts)))


class Counted(Protocol):
    service: str

    def counts(self) -> Counts: ...


_all: WeakSet[Any] = WeakSet()


def counts(service: str | None = None) -> Counts:
    """Return the counts of this process, or of one service in it. May be called by any thread. Does not block."""
    return sum((each.counts() for each in list(_all) if service in (None, each.service)), Counts())


def register(counted: Counted) -> None:
    """Let `counts` and Prometheus see this one, for as long as it lives."""
    _all.add(counted)
    _register_collector()


class _Collector:
    """Reads the counts when Prometheus asks, so that a request pays nothing for them."""

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        total = CounterMetricFamily(
            "request_footprints", "Requests noted, by what became of them", labels=("service", "outcome")
        )
        waiting = GaugeMetricFamily("request_footprints_waiting", "On the way to Kafka", labels=("service",))
        for service in sorted({each.service for each in list(_all)}):
            found = counts(service)
            for outcome in ("delivered", "excluded", "queue_full", "undelivered", "failed"):
                total.add_metric((service, outcome), getattr(found, outcome))
            waiting.add_metric((service,), found.waiting)
        yield total
        yield waiting


_collector: _Collector | None = None


def _register_collector() -> None:
    global _collector
    if _collector is not None:
        return
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    _collector = _Collector()
    REGISTRY.register(_collector)
