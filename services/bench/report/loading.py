"""The results of loads by k6: the highest rate that holds the objective."""

from collections.abc import Iterable

from services.bench.evidence.records import Table, Trial
from services.bench.plan.cells import LoadCell
from services.bench.plan.contenders import contenders
from services.bench.plan.schema import Plan
from services.bench.report import judging
from services.bench.report.statistics import Sampled
from services.bench.report.summary import QUANTILES, LoadResult

_Cells = dict[LoadCell, list[tuple[Trial, Table]]]


def loads(plan: Plan, trials: Iterable[tuple[Trial, Table]]) -> list[LoadResult]:
    grouped: dict[tuple[str, str], _Cells] = {}
    for trial, reads in trials:
        cell = trial.cell
        assert isinstance(cell, LoadCell)
        grouped.setdefault((cell.scenario, cell.store), {}).setdefault(cell, []).append((trial, reads))
    order = list(contenders())
    ordered = sorted(grouped.items(), key=lambda item: (item[0][0], order.index(item[0][1])))
    return [_result(plan, scenario, store, cells) for (scenario, store), cells in ordered]


def _result(plan: Plan, scenario: str, store: str, cells: _Cells) -> LoadResult:
    missed = {
        cell: judging.in_repeats(
            (trial.repeat, reason) for trial, reads in measured for reason in judging.missed(trial, reads, plan)
        )
        for cell, measured in cells.items()
    }
    held = [cell for cell in cells if cell.phase == "hold" and not missed[cell]]
    best = max(held, key=lambda cell: cell.rate, default=None)
    rate = best.rate if best else 0.0
    beyond = min(
        (cell for cell in cells if missed[cell] and cell.rate > rate), key=lambda cell: cell.rate, default=None
    )
    sampled = Sampled([reads["response"] for _, reads in cells[best]] if best else [], plan.seed)
    return LoadResult(
        scenario,
        store,
        contenders()[store].label,
        rate,
        beyond.rate if beyond else 0.0,
        missed[beyond] if beyond else [],
        sampled.count,
        {name: each and each.scaled(1e-3) for name, q in QUANTILES.items() for each in [sampled.quantile(q)]},
    )
