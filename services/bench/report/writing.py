"""The results of writes: rates, the knee, faults."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.bench.evidence.records import Table, Tables, Trial
from services.bench.plan.cells import FaultCell, WriteCell
from services.bench.plan.schema import Plan
from services.bench.report import judging, statistics
from services.bench.report.breaking import first_to_break
from services.bench.report.shares import Limits, shares
from services.bench.report.statistics import Sampled
from services.bench.report.summary import QUANTILES, FaultResult, Knee, Quantiles, Second, WriteResult

_MINUTE = 60.0
_MILLION = 1e6
_SLOWER = 2.0  # a reply has recovered if it is at most so many times slower than the slowest one before the fault

Measured = tuple[Trial, Tables]


def writes(plan: Plan, trials: Iterable[Measured], limits: Limits) -> list[WriteResult]:
    """`limits`: of the control arms."""
    grouped: dict[WriteCell, list[Measured]] = {}
    for trial, tables in trials:
        assert isinstance(trial.cell, WriteCell)
        grouped.setdefault(trial.cell, []).append((trial, tables))
    phases = ["ladder", "search", "hold"]
    ordered = sorted(grouped.items(), key=lambda item: (phases.index(item[0].phase), item[0].rate))
    return [_rate(plan, cell, measured, limits) for cell, measured in ordered]


def _rate(plan: Plan, cell: WriteCell, measured: Sequence[Measured], limits: Limits) -> WriteResult:
    tables = [each for _, each in measured]
    accepted, refused, in_doubt = (_rows(tables, each) for each in ("acked", "refused", "indeterminate"))
    void: list[tuple[int, str]] = []
    unheld: list[tuple[int, str]] = []
    for trial, each in measured:
        reasons = [*judging.driver(trial, plan.limits), *judging.stored(trial, each["writes"])]
        void += [(trial.repeat, reason) for reason in reasons]
        unheld += [(trial.repeat, reason) for reason in judging.unheld(trial, each, plan.limits)]
    minutes = [trial.seconds / _MINUTE for trial, _ in measured]
    rates = [judging.rows_of(each["writes"], "acked") / spent for each, spent in zip(tables, minutes, strict=True)]
    stores = list(measured[0][0].drained)
    return WriteResult(
        cell.key,
        cell.phase,
        cell.rate,
        len(measured),
        round(sum(trial.seconds for trial, _ in measured), 3),
        accepted,
        refused,
        in_doubt,
        statistics.mean(rates, plan.seed).scaled(1),
        shares(rates, limits, plan.seed),
        _quantiles([_acked(each["writes"]) for each in tables], plan.seed),
        {
            store: _quantiles([[lag for _, lag in judging.freshness(each, store)] for each in tables], plan.seed)
            for store in stores
        },
        {store: round(slope, 4) for store in stores if (slope := _worst_slope(tables, store)) is not None},
        {store: _longest([trial.drained[store] for trial, _ in measured]) for store in stores},
        _a_million([trial.cpu for trial, _ in measured], accepted),
        _a_million([trial.disk for trial, _ in measured], accepted),
        _mb_per_cpu_second(measured),
        not unheld and not void,
        judging.in_repeats(unheld),
        judging.in_repeats(void),
    )


def _quantiles(repeats: Sequence[Sequence[int]], seed: int) -> Quantiles:
    sampled = Sampled(repeats, seed)
    return {name: each and each.scaled(1e-3) for name, q in QUANTILES.items() for each in [sampled.quantile(q)]}


def _acked(writes: Table) -> list[int]:
    pairs = zip(writes["response"], writes["outcome"], strict=True)
    return [response for response, outcome in pairs if outcome == "acked"]


def _rows(tables: Iterable[Tables], outcome: str) -> int:
    return sum(judging.rows_of(each["writes"], outcome) for each in tables)


def _worst_slope(tables: Iterable[Tables], store: str) -> float | None:
    slopes = [judging.lag_slope(judging.freshness(each, store)) for each in tables]
    return max((slope for slope in slopes if slope is not None), default=None)


def _longest(seconds: Sequence[float | None]) -> float | None:
    return None if None in seconds else max(each for each in seconds if each is not None)


def _a_million(used: Sequence[Mapping[str, float]], rows: int) -> dict[str, float]:
    """Return what each component used for a million rows."""
    names = sorted({name for each in used for name in each})
    if not rows:
        return {}
    return {name: round(sum(each.get(name, 0) for each in used) * _MILLION / rows, 3) for name in names}


def _mb_per_cpu_second(measured: Sequence[Measured]) -> float:
    spent = sum(sum(trial.cpu.values()) for trial, _ in measured)
    sizes = (zip(each["writes"]["bytes"], each["writes"]["outcome"], strict=True) for _, each in measured)
    size = sum(size for pairs in sizes for size, outcome in pairs if outcome == "acked")
    return round(size / 1e6 / spent, 3) if spent else 0.0


def knee(plan: Plan, results: Sequence[WriteResult], trials: Iterable[Measured]) -> Knee | None:
    """Return None if no knee was searched."""
    if plan.knee is None or all(result.phase == "ladder" for result in results):
        return None
    held = [result for result in results if result.phase == "hold" and result.held]
    best = max(held, key=lambda result: result.rate, default=None)
    rate, of_arms = (best.rate, best.shares) if best else (0, {})
    beyond = [result for result in results if not result.held and result.rate > rate]
    if not beyond:
        return Knee(rate, 0, "", of_arms)
    lowest = min(beyond, key=lambda result: result.rate)
    failed = [(trial, tables) for trial, tables in trials if trial.cell.key == lowest.key]
    return Knee(rate, lowest.rate, first_to_break(lowest.unheld or lowest.void, failed), of_arms)


def faults(plan: Plan, trials: Iterable[Measured]) -> list[FaultResult]:
    grouped: dict[str, list[Measured]] = {}
    for trial, tables in trials:
        assert isinstance(trial.cell, FaultCell)
        grouped.setdefault(trial.cell.component, []).append((trial, tables))
    return [_fault(plan, component, measured) for component, measured in sorted(grouped.items())]


def _fault(plan: Plan, component: str, measured: Sequence[Measured]) -> FaultResult:
    tables = [each for _, each in measured]
    accepted, refused, in_doubt = (_rows(tables, each) for each in ("acked", "refused", "indeterminate"))
    void: list[tuple[int, str]] = []
    for trial, each in measured:
        reasons = [*judging.driver(trial, plan.limits), *judging.undrained(trial, plan.limits)]
        reasons += judging.stored(trial, each["writes"])
        void += [(trial.repeat, reason) for reason in reasons]
    stores = list(measured[0][0].drained)
    return FaultResult(
        measured[0][0].cell.key,
        component,
        len(measured),
        accepted,
        refused,
        in_doubt,
        [_recovered(trial, _responses(each["writes"])) for trial, each in measured],
        {store: [_recovered(trial, judging.freshness(each, store)) for trial, each in measured] for store in stores},
        _timeline(measured[0][1]["writes"]),
        (measured[0][0].fault_at or 0) // 1_000_000,
        judging.in_repeats(void),
    )


def _responses(writes: Table) -> list[tuple[int, int]]:
    triples = zip(writes["due"], writes["response"], writes["outcome"], strict=True)
    return sorted((due, response) for due, response, outcome in triples if outcome == "acked")


def _recovered(trial: Trial, durations: Sequence[tuple[int, int]]) -> float | None:
    """Return the seconds from the fault to the first intended time from which on nothing took long; None if never.

    `durations`: pairs of intended time and duration. Long: more than twice the slowest one before the fault.
    """
    fault = trial.fault_at or 0
    before = [duration for due, duration in durations if due + duration < fault]
    after = [(due, duration) for due, duration in durations if due >= fault]
    if not before or not after:
        return None
    late = [due for due, duration in after if duration > _SLOWER * max(before)]
    later = [due for due, _ in after if not late or due > max(late)]
    return round((min(later) - fault) / 1e6, 3) if later else None


def _timeline(writes: Table) -> list[Second]:
    seconds: dict[int, _Second] = {}
    for due, response, outcome in zip(writes["due"], writes["response"], writes["outcome"], strict=True):
        second = seconds.setdefault(due // 1_000_000, _Second())
        second.outcomes.append(outcome)
        second.slowest = max(second.slowest, response)
    return [
        Second(at, each.outcomes.count("acked"), len(each.outcomes) - each.outcomes.count("acked"), each.slowest / 1e3)
        for at, each in sorted(seconds.items())
    ]


@dataclass(slots=True)
class _Second:
    outcomes: list[str] = field(default_factory=list)
    slowest: int = 0
