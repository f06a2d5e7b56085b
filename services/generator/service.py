"""The work behind the generator's endpoints: a running load of both datasets, bursts, and samples."""

import asyncio
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from services import datasets
from services.core import metric_names
from services.generator.load import Load, Tally
from services.generator.synthesis import Synthesizer, seed_or_clock
from services.ingest_client.client import IngestClient
from services.runtime import logs, metrics

_log = logs.get("generator")

DATASETS = ("logs", "events")  # the datasets that the HTTP contract names
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Config:
    """Each dataset gets `batch_size` rows every `log_interval` or `event_interval` seconds."""

    batch_size: int = 100
    log_interval: float = 5.0
    event_interval: float = 10.0

    def interval(self, dataset: str) -> float:
        return self.log_interval if dataset == "logs" else self.event_interval

    def throughput(self) -> dict[str, float]:
        per_minute = {f"{name}_per_minute": self.batch_size * 60 / self.interval(name) for name in DATASETS}
        return per_minute | {"total_per_minute": sum(per_minute.values())}


class Generator:
    """One for each process; all methods run on the event loop.

    Each load and burst takes the next seed, so that no two of them have the same rows.
    """

    def __init__(self, client: IngestClient, seed: int = 0) -> None:
        self._client = client
        self._next_seed = seed_or_clock(seed)
        self._config = Config()
        self._tallies: dict[str, list[Tally]] = {name: [] for name in DATASETS}
        self._loads: dict[str, Load] = {}  # the running loads
        self._tasks: set[asyncio.Task[None]] = set()  # including stopped loads that still settle requests
        for name in DATASETS:
            metrics.gauge(metric_names.GENERATOR_BEHIND_SECONDS, name).set_function(partial(self.behind, name))

    def start(self, config: Config) -> int:
        """Replace the running load by one with `config`; returns the seed of its rows."""
        self.stop()
        self._config = config
        seed = self._seed()
        for name in DATASETS:
            load = Load(self._client, datasets.find(name), config.batch_size, config.interval(name), seed=seed)
            self._loads[name] = load
            self._tallies[name].append(load.tally)
            task = asyncio.create_task(_run(load))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        _log.info("load started", seed=seed, **asdict(config))
        return seed

    def stop(self) -> None:
        """Send no new requests; the requests in flight are settled in the background."""
        for load in self._loads.values():
            load.stop()
        self._loads.clear()

    async def close(self, grace: float) -> None:
        """Stop, and wait up to `grace` seconds; requests still in flight then count as indeterminate."""
        self.stop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def behind(self, name: str) -> float:
        """Seconds; 0 when nothing runs."""
        load = self._loads.get(name)
        return load.behind() if load else 0.0

    def status(self) -> dict[str, Any]:
        """Counts are rows since the process started; rows of bursts are not counted."""
        tallies = [tally for name in DATASETS for tally in self._tallies[name]]
        return {
            "running": bool(self._loads),
            "config": asdict(self._config),
            "throughput": self._config.throughput(),
            "stats": {
                **{f"{name}_sent": sum(tally.acked for tally in self._tallies[name]) for name in DATASETS},
                "errors": sum(tally.errors for tally in tallies),
                "refused": sum(tally.refused for tally in tallies),
                "indeterminate": sum(tally.indeterminate for tally in tallies),
                "behind_ms": round(max(map(self.behind, DATASETS)) * 1000, 1),
            },
        }

    async def burst(self, name: str, count: int, batch_size: int, days: float = 0.0) -> dict[str, Any]:
        """Send `count` rows as fast as ingest replies. Their times are now, or in the last `days`."""
        load = Load(self._client, datasets.find(name), batch_size, 0.0, count, self._seed(), days * _DAY_SECONDS)
        report = await load.run()
        errors = report.refused + report.indeterminate
        _log.info("burst finished", **asdict(report))
        return {"status": "completed", "requested": count, "sent": report.acked, "errors": errors} | {
            key: getattr(report, key) for key in ("refused", "indeterminate", "seconds", "seed", "problem")
        }

    def sample(self, name: str, count: int) -> list[bytes]:
        """Rows as JSON objects, which are not sent; one row for each millisecond up to now."""
        start_us = time.time_ns() // 1000 - count * 1000
        return Synthesizer(datasets.find(name), self._seed(), start_us, 1000).lines(0, count)

    def _seed(self) -> int:
        self._next_seed += 1
        return self._next_seed - 1


async def _run(load: Load) -> None:
    _log.info("load finished", **asdict(await load.run()))
