"""The time from the acceptance of rows until a store holds them, from the histograms of the loading processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from services import stores
from services.core.metric_names import FRESHNESS_SECONDS
from services.local.settings import LocalSettings


@dataclass(frozen=True, slots=True)
class Freshness:
    """`buckets`: upper bound in seconds -> how many observations were at most that."""

    buckets: Mapping[float, float] = field(default_factory=dict)

    def since(self, earlier: Self) -> "Freshness":
        return Freshness({b: count - earlier.buckets.get(b, 0.0) for b, count in sorted(self.buckets.items())})

    def quantile(self, q: float) -> float | None:
        """Seconds, interpolated within a bucket as Prometheus does; inf beyond the last bound, None without rows."""
        total = max(self.buckets.values(), default=0.0)
        lower, below = 0.0, 0.0
        for bound, count in self.buckets.items():
            if total and count >= q * total:
                return (
                    bound if bound == float("inf") else lower + (bound - lower) * (q * total - below) / (count - below)
                )
            lower, below = bound, count
        return None


def read(client: httpx.Client, settings: LocalSettings) -> dict[str, Freshness]:
    """Return the freshness of each store that is loaded, over all datasets, since the loading process started."""
    found: dict[str, dict[float, float]] = {name: {} for name in stores.writers()}
    for port in (settings.stream_to_store_port, settings.stream_to_lake_port):
        text = client.get(f"http://127.0.0.1:{port}/metrics").text
        for family in text_string_to_metric_families(text):
            if family.name != FRESHNESS_SECONDS.name:
                continue
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    buckets = found[sample.labels["store"]]
                    bound = float(sample.labels["le"])
                    buckets[bound] = buckets.get(bound, 0.0) + sample.value
    return {store: Freshness(buckets) for store, buckets in found.items()}
