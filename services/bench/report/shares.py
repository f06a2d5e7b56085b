"""The rates of the pipeline as shares of what control arms take: components without the pipeline, in the same run."""

from collections.abc import Iterable, Mapping, Sequence

from services.bench.evidence.records import Trial
from services.bench.plan.cells import ControlCell
from services.bench.plan.schema import Control
from services.bench.report import statistics
from services.bench.report.statistics import Estimate

ARMS: tuple[Control, ...] = ("copy", "kafka", "clickhouse-file")
"""The arms whose rows take the way of the pipeline's rows, in the order of that way."""

Limits = Mapping[str, Sequence[float]]
"""The rows a second of each repeat, by arm."""

_MINUTE = 60.0


def limits(trials: Iterable[Trial]) -> Limits:
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for trial in trials:
        if isinstance(trial.cell, ControlCell) and trial.cell.arm in found and trial.values["rows/s"] > 0:
            found[trial.cell.arm].append(trial.values["rows/s"])
    return {arm: rates for arm, rates in found.items() if rates}


def shares(rates: Sequence[float], limits: Limits, seed: int) -> dict[str, Estimate]:
    """Return the share of each arm. `rates`: rows a minute of each repeat."""
    a_second = [rate / _MINUTE for rate in rates]
    return {arm: statistics.mean_ratio(a_second, limit, seed).scaled(1) for arm, limit in limits.items()}


def sentence(found: Mapping[str, Estimate]) -> str:
    """Return '' if no arm was measured."""
    parts = [f"{_percent(share)} of {arm}" for arm, share in found.items()]
    return f"Of the control arms, the knee is {', '.join(parts)}." if parts else ""


def _percent(share: Estimate) -> str:
    low, high = (f"{100 * value:.2g}" if value < 0.1 else f"{100 * value:.0f}" for value in (share.low, share.high))
    return f"{low} %" if low == high else f"{low} to {high} %"
