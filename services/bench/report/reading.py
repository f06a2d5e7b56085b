"""The results of reads: of the cells that differ in nothing but the store, and which store wins."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from services.bench.evidence.records import Table, Trial
from services.bench.plan.cells import MixedCell, ReadCell
from services.bench.plan.contenders import contenders
from services.bench.plan.queries import QUERIES
from services.bench.plan.schema import Plan
from services.bench.report import judging
from services.bench.report.statistics import Estimate, Sampled
from services.bench.report.summary import QUANTILES, ReadCondition, ReadResult

MIN_REPEATS = 3
"""With fewer repeats no store wins, whatever the intervals: nothing tells how much two repeats of a cell differ."""

_CURVE = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)

Condition = tuple[int, str, str, str, float | None, float | None]
"""rows, state, method, query, rate, share of the knee"""


@dataclass(slots=True)
class _Cell:
    """All trials of one cell."""

    key: str
    store: str
    trials: list[Trial] = field(default_factory=list)
    reads: list[Table] = field(default_factory=list)
    files: list[Table] = field(default_factory=list)
    void: list[tuple[int, str]] = field(default_factory=list)

    def column(self, name: str) -> list[list[int]]:
        """Return the values of each repeat, without failed queries."""
        return [
            [value for value, problem in zip(table[name], table["problem"], strict=True) if not problem]
            for table in self.reads
        ]


def conditions(plan: Plan, trials: Iterable[tuple[Trial, Table, Table, list[str]]]) -> list[ReadCondition]:
    """`trials`: with their tables of reads and files, and the reasons that already make them void."""
    grouped: dict[Condition, dict[str, _Cell]] = {}
    for trial, reads, files, void in trials:
        cell = trial.cell
        assert isinstance(cell, ReadCell | MixedCell)
        found = grouped.setdefault(_condition(plan, cell), {}).setdefault(cell.store, _Cell(cell.key, cell.store))
        found.trials.append(trial)
        found.reads.append(reads)
        found.files.append(files)
        reasons = [*judging.driver(trial, plan.limits), *void]
        reasons += judging.reads(cell if isinstance(cell, ReadCell) else None, reads)
        found.void += [(trial.repeat, reason) for reason in reasons]
    order = list(contenders())
    return [
        _judged(plan, condition, sorted(cells.values(), key=lambda cell: order.index(cell.store)))
        for condition, cells in sorted(grouped.items(), key=_order)
    ]


def _condition(plan: Plan, cell: ReadCell | MixedCell) -> Condition:
    if isinstance(cell, ReadCell):
        return cell.rows, cell.state, cell.method, cell.query, cell.rate, None
    assert plan.mixed is not None
    return 0, "as-written", "scan", cell.query, plan.mixed.rate, cell.share


def _order(item: tuple[Condition, object]) -> tuple[object, ...]:
    rows, state, method, query, rate, share = item[0]
    return rows, share or 0.0, state, method, list(QUERIES).index(query), rate or 0.0


def _judged(plan: Plan, condition: Condition, cells: Sequence[_Cell]) -> ReadCondition:
    if condition[-1] is None:  # under load, the stores are not read as of one batch
        for repeat in range(plan.repeats):
            digests = {
                cell.store: set(filter(None, table["digest"]))
                for cell in cells
                for trial, table in zip(cell.trials, cell.reads, strict=True)
                if trial.repeat == repeat
            }
            for cell in cells:
                if reason := judging.differing(digests).get(cell.store):
                    cell.void.append((repeat, reason))
    rows, state, method, query, rate, share = condition
    sampled = {cell.store: Sampled(cell.column("response"), plan.seed) for cell in cells}
    results = [_result(plan, cell, sampled[cell.store]) for cell in cells]
    valid = [result for result in results if not result.void and result.response["p50"]]
    winner, verdict = _verdict(valid, sampled, QUERIES[query].verb)
    return ReadCondition(rows, state, method, query, QUERIES[query].verb, rate, share, results, winner, verdict)


def _result(plan: Plan, cell: _Cell, sampled: Sampled) -> ReadResult:
    store_ms = Sampled(cell.column("store"), plan.seed).quantile(0.5)
    methods = Counter(method for table in cell.reads for method in table["method"] if method)
    files = [value for table in cell.files for value in table["files"]]
    return ReadResult(
        cell.key,
        cell.store,
        contenders()[cell.store].label,
        len({trial.repeat for trial in cell.trials}),
        sampled.count,
        {name: each and each.scaled(1e-3) for name, q in QUANTILES.items() for each in [sampled.quantile(q)]},
        store_ms and store_ms.scaled(1e-3),
        dict(sorted(methods.items())),
        round(median(files)) if files else 0,
        _curve(cell.column("response")),
        judging.in_repeats(cell.void),
    )


def _curve(repeats: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
    """Return pairs of quantile and milliseconds, of all repeats together."""
    ordered = sorted(value for repeat in repeats for value in repeat)
    if not ordered:
        return []
    return [(q, ordered[min(len(ordered) - 1, int(q * len(ordered)))] / 1e3) for q in _CURVE]


def _verdict(valid: Sequence[ReadResult], sampled: Mapping[str, Sampled], verb: str) -> tuple[str, str]:
    """Return the winner, '' if there is none, and the sentence."""
    if len(valid) < 2:
        return "", f"no comparison: {len(valid)} of the stores {'has' if len(valid) == 1 else 'have'} a valid cell"
    if (fewest := min(result.repeats for result in valid)) < MIN_REPEATS:
        return "", f"not separable: {fewest} repeats, and a winner needs {MIN_REPEATS}"
    first, *others = sorted(valid, key=lambda result: _p50(result).value)
    if tied := [other for other in others if not _is_faster(first, other, sampled)]:
        names = " and ".join([first.label, *(other.label for other in tied)])
        return "", f"not separable: {names}"
    parts = []
    for other in others:
        ratio = sampled[first.store].ratio(sampled[other.store])
        assert ratio is not None, "both have enough samples for a median"
        parts.append(f"{_times(ratio.low, ratio.high)} faster than {other.label}")
    return first.store, f"{first.label} {verb} {', '.join(parts)}"


def _p50(result: ReadResult) -> Estimate:
    estimate = result.response["p50"]
    assert estimate is not None, "only results with a median are compared"
    return estimate


def _is_faster(first: ReadResult, other: ReadResult, sampled: Mapping[str, Sampled]) -> bool:
    """Return whether the intervals separate, and every repeat agrees."""
    pairs = zip(sampled[first.store].medians(), sampled[other.store].medians(), strict=False)
    return _p50(first).is_below(_p50(other)) and all(ours < theirs for ours, theirs in pairs)


def _times(low: float, high: float) -> str:
    spelled = [f"{value:.2g}" if value < 10 else f"{value:,.0f}" for value in (low, high)]
    return " to ".join(dict.fromkeys(spelled)) + " times"
