"""The summary of a run, from its evidence."""

from collections import defaultdict
from itertools import pairwise

from services.bench.evidence.folder import Evidence
from services.bench.evidence.records import Tables, Trial
from services.bench.plan.cells import ControlCell, FaultCell, LoadCell, MixedCell, ReadCell, WriteCell
from services.bench.plan.loading import parsed
from services.bench.plan.schema import Plan
from services.bench.report import judging, loading, reading, shares, statistics, writing
from services.bench.report.summary import (
    QUANTILES,
    ControlResult,
    Knee,
    LoadResult,
    ReadCondition,
    Summary,
    Void,
    WriteResult,
)

_STATUS = {
    "interrupted": "partial: the run was interrupted",
    "over-budget": "partial: the time budget of the plan was used up",
    "failed": "partial: the run failed",
}


def summary(evidence: Evidence) -> Summary:
    """Raises Invalid if the evidence is not readable."""
    plan, about = parsed(evidence.plan, str(evidence.folder / "plan.yaml")), evidence.about
    by_kind: dict[type, list[tuple[Trial, Tables]]] = defaultdict(list)
    for trial in evidence.trials():
        by_kind[type(trial.cell)].append((trial, evidence.tables(trial)))
    reads = reading.conditions(plan, [(t, each["reads"], each["files"], []) for t, each in by_kind[ReadCell]])
    mixed = reading.conditions(
        plan,
        [
            (t, each["reads"], each["files"], judging.stored(t, each["writes"]) + judging.unheld(t, each, plan.limits))
            for t, each in by_kind[MixedCell]
        ],
    )
    limits = shares.limits(trial for trial, _ in by_kind[ControlCell])
    writes = writing.writes(plan, by_kind[WriteCell], limits)
    knee = writing.knee(plan, writes, by_kind[WriteCell])
    faults = writing.faults(plan, by_kind[FaultCell])
    loads = loading.loads(plan, [(t, each["reads"]) for t, each in by_kind[LoadCell]])
    voids = [Void(each.key, each.void) for condition in (*reads, *mixed) for each in condition.results if each.void]
    voids += [Void(each.key, each.void) for each in writes if each.void]
    voids += [Void(each.key, each.void) for each in faults if each.void]
    return Summary(
        plan.name,
        plan.about,
        about.run,
        about.started,
        _status(evidence),
        _findings(reads, mixed, writes, knee, loads),
        {name: float(value) for name, value in plan.limits.model_dump().items()},
        {name: statistics.needed(q) for name, q in QUANTILES.items()},
        voids,
        reads,
        mixed,
        writes,
        knee,
        faults,
        loads,
        f"{plan.load.slo_share:.0%} of the requests answered within {plan.load.slo_ms:g} ms" if plan.load else "",
        [event.text for event in evidence.journal if event.event == "note"],
        _controls(plan, by_kind[ControlCell]),
        about.machine,
        about.versions,
        about.target,
        about.settings,
    )


def _status(evidence: Evidence) -> str:
    """Return what is wrong with the whole run; '' for nothing."""
    found = [event.text for event in evidence.journal if event.event == "differs"]
    ends = [event for event in evidence.journal if event.event in (*_STATUS, "finished")]
    if not ends:
        found.append("partial: the run did not end, or was killed")
    elif (last := ends[-1]).event != "finished":
        found.append(f"{_STATUS[last.event]}{': ' if last.text else ''}{last.text}")
    return "; ".join(found)


def _controls(plan: Plan, trials: list[tuple[Trial, Tables]]) -> list[ControlResult]:
    arms: dict[str, list[Trial]] = defaultdict(list)
    for trial, _ in trials:
        arms[trial.cell.key].append(trial)
    return [
        ControlResult(
            key,
            key.rpartition("/")[2],
            {
                name: statistics.mean([trial.values[name] for trial in measured], plan.seed).scaled(1)
                for name in measured[0].values
            },
        )
        for key, measured in arms.items()
    ]


def _findings(
    reads: list[ReadCondition],
    mixed: list[ReadCondition],
    writes: list[WriteResult],
    knee: Knee | None,
    loads: list[LoadResult],
) -> list[str]:
    """Return the sentences with which a report begins."""
    found = []
    if held := [each for each in writes if each.held and each.phase == "ladder"]:
        best = max(held, key=lambda each: each.rate)
        found.append(
            f"Of the rates that were tried, {best.rate:,} rows/min was the highest that was held:"
            f" {best.sustained.low:,.0f} to {best.sustained.high:,.0f} rows/min were accepted."
        )
    elif any(each.phase == "ladder" for each in writes):
        found.append("None of the rates that were tried was held.")
    if knee:
        beyond = f", and {knee.beyond:,} was not held" if knee.beyond else ""
        held_again = (
            f"The knee is {knee.rate:,} rows/min: held again after the search" if knee.rate else "No rate was held"
        )
        found.append(f"{held_again}{beyond}.")
        found += filter(None, [shares.sentence(knee.shares)])
        if knee.broke_first:
            found.append(f"First to break: {knee.broke_first}.")
    found += [
        f"k6, {each.scenario}: {each.label} holds {each.rate:g} requests/s"
        + (f", and did not hold {each.beyond:g}." if each.beyond else ".")
        for each in loads
        if each.rate
    ]
    largest_first = sorted(reads, key=lambda condition: -condition.rows)
    found += _crossovers(reads)
    return [*found, *(f"{_where(condition)}: {condition.verdict}." for condition in (*largest_first, *mixed))]


def _crossovers(reads: list[ReadCondition]) -> list[str]:
    """Return where another store wins as the dataset grows."""
    by_query: dict[tuple[str, str, str, float | None], list[ReadCondition]] = defaultdict(list)
    for condition in sorted(reads, key=lambda condition: condition.rows):
        if condition.winner:
            by_query[condition.state, condition.method, condition.query, condition.rate].append(condition)
    return [
        f"{_where(after)}: {_label(after)} {after.verb} fastest; at {before.rows:,} rows it was {_label(before)}."
        for conditions in by_query.values()
        for before, after in pairwise(conditions)
        if before.winner != after.winner
    ]


def _label(condition: ReadCondition) -> str:
    return next(result.label for result in condition.results if result.store == condition.winner)


def _where(condition: ReadCondition) -> str:
    parts = [f"{condition.rows:,} rows" if condition.share is None else f"At {condition.share:.0%} of the knee"]
    parts.append(condition.query)
    if condition.state == "compacted":
        parts.append("lake compacted")
    if condition.method != "scan":
        parts.append("from what is kept beside the rows" if condition.method == "kept" else "from the cache")
    if condition.rate and condition.share is None:
        parts.append(f"{condition.rate:g} queries/s")
    return ", ".join(parts)
