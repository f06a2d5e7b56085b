"""Which trials are void, and which rates are held: rules with the limits of the plan, each with its reason in words."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from services.bench.evidence.records import Table, Tables, Trial
from services.bench.plan.cells import ReadCell
from services.bench.plan.schema import Limits, Method, Plan

_SLOPE_SECONDS = 30.0
"""Shorter trials say nothing about a trend: the lake commits every few seconds."""

_EXPECTED: Mapping[Method, frozenset[str]] = {
    "scan": frozenset({"scan"}),
    "kept": frozenset({"scan", "rollup", "metadata"}),
    "cache": frozenset({"cache"}),
}


def driver(trial: Trial, limits: Limits) -> list[str]:
    """Return why the driver makes the trial void."""
    pace, found = trial.pace, []
    if pace.dropped:
        found.append(
            f"the driver dropped {pace.dropped:,} of {pace.scheduled:,} requests, because {limits.in_flight:,} were"
            " under way"
        )
    if pace.late_ms > limits.driver_late_ms:
        found.append(
            f"the driver fell behind: it sent a request {pace.late_ms:,.0f} ms late (limit {limits.driver_late_ms:g})"
        )
    return found


def in_repeats(reasons: Iterable[tuple[int, str]]) -> list[str]:
    """Return each reason once, with the repeats that it holds for. `reasons`: pairs of repeat and reason."""
    repeats: dict[str, list[int]] = {}
    for repeat, reason in reasons:
        repeats.setdefault(reason, []).append(repeat + 1)
    return [
        f"repeat{'s' if len(each) > 1 else ''} {', '.join(map(str, sorted(each)))}: {reason}"
        for reason, each in repeats.items()
    ]


def reads(cell: ReadCell | None, table: Table) -> list[str]:
    """Return why the replies make a trial void. `cell`: None for reads under load: scans, each of newer rows."""
    found = _failures("queries", table["problem"])
    method: Method = cell.method if cell else "scan"
    methods = Counter(each for each in table["method"] if each)
    if strange := {name: count for name, count in methods.items() if not set(name.split("+")) <= _EXPECTED[method]}:
        told = ", ".join(f"{count:,} by {name}" for name, count in sorted(strange.items()))
        found.append(
            f"replies were not by {method}: {told}" if method != "kept" else f"replies came from a cache: {told}"
        )
    if cell and len(digests := set(filter(None, table["digest"]))) > 1:
        found.append(f"the same query returned {len(digests)} different results")
    return found


def missed(trial: Trial, table: Table, plan: Plan) -> list[str]:
    """Return why a load of k6 did not hold the objective of the plan; [] if it did."""
    assert plan.load is not None
    found = driver(trial, plan.limits) + reads(None, table)
    in_time = sum(
        response <= plan.load.slo_ms * 1000 and not problem
        for response, problem in zip(table["response"], table["problem"], strict=True)
    )
    if in_time < plan.load.slo_share * trial.pace.scheduled:
        found.append(
            f"{in_time:,} of {trial.pace.scheduled:,} requests were answered within {plan.load.slo_ms:g} ms"
            f" (limit {plan.load.slo_share:.0%})"
        )
    return found


def _failures(what: str, problems: Iterable[str]) -> list[str]:
    counted = Counter(filter(None, problems))
    return [f"{sum(counted.values()):,} {what} failed: {counted.most_common(1)[0][0]}"] if counted else []


def differing(digests: Mapping[str, set[str]]) -> dict[str, str]:
    """Return for each store whose result differs why. `digests`: of one query as of one batch, by store.

    What more than half of the stores return counts as right. Without such a majority the results of all are in doubt.
    """
    returned = {store: min(each) for store, each in digests.items() if len(each) == 1}
    counted = Counter(returned.values())
    if len(counted) < 2:
        return {}
    agreed, votes = counted.most_common(1)[0]
    if votes * 2 <= len(returned):
        return dict.fromkeys(returned, "the stores return different results, and no result has a majority")
    return {
        store: f"its result differs from the one that {votes} of {len(returned)} stores return"
        for store, digest in returned.items()
        if digest != agreed
    }


def rows_of(table: Table, outcome: str) -> int:
    return sum(rows for rows, each in zip(table["rows"], table["outcome"], strict=True) if each == outcome)


def stored(trial: Trial, writes: Table) -> list[str]:
    """Return which stores have lost or doubled rows of a trial."""
    acked, in_doubt = rows_of(writes, "acked"), rows_of(writes, "indeterminate")
    found = []
    for store, rows in trial.stored.items():
        if rows < 0:
            found.append(f"{store} did not say how many rows it has")
        elif rows < acked and trial.drained.get(store) is not None:
            found.append(f"{store} lost {acked - rows:,} of {acked:,} accepted rows")
        elif rows > acked + in_doubt:
            found.append(f"{store} has {rows - acked - in_doubt:,} rows too many: some are doubled")
    return found


def unheld(trial: Trial, tables: Tables, limits: Limits) -> list[str]:
    """Return why the stack did not hold the rate of a trial; [] if it did."""
    writes = tables["writes"]
    offered = sum(writes["rows"]) + trial.pace.dropped * (max(writes["rows"], default=0))
    acked = rows_of(writes, "acked")
    found = driver(trial, limits)
    if acked < limits.acked_share * offered:
        found.append(f"{acked:,} of {offered:,} offered rows were accepted ({_most_common(writes['problem'])})")
    found += undrained(trial, limits)
    for store in trial.drained:
        slope = lag_slope(freshness(tables, store))
        if trial.seconds >= _SLOPE_SECONDS and slope is not None and slope > limits.lag_slope:
            found.append(f"{store} fell behind by {slope:.2f} s in each second (limit {limits.lag_slope:g})")
    return found


def undrained(trial: Trial, limits: Limits) -> list[str]:
    """Return which stores did not have the rows of a trial in time."""
    return [
        f"{store} did not have its rows {limits.drain_seconds:g} s after the last reply"
        for store, seconds in trial.drained.items()
        if seconds is None
    ]


def _most_common(problems: Sequence[str]) -> str:
    counted = Counter(filter(None, problems))
    return counted.most_common(1)[0][0] if counted else "no error"


def freshness(tables: Tables, store: str) -> list[tuple[int, int]]:
    """Return for each accepted request that became visible (intended time, time until visible), in microseconds."""
    writes, polls = tables["writes"], tables["polls"]
    seen = [
        (at, as_of)
        for name, at, as_of in zip(polls["store"], polls["at"], polls["as_of"], strict=True)
        if name == store
    ]
    if not seen:
        return []
    times = np.asarray([at for at, _ in seen])
    marks = np.maximum.accumulate([as_of for _, as_of in seen])
    found = []
    for due, batch, outcome in zip(writes["due"], writes["batch"], writes["outcome"], strict=True):
        position = int(np.searchsorted(marks, batch))
        if outcome == "acked" and batch and position < len(times):
            found.append((due, int(times[position]) - due))
    return found


def lag_slope(visible: Sequence[tuple[int, int]]) -> float | None:
    """Return by how many seconds freshness worsens in a second, None for fewer than three requests."""
    if len(visible) < 3:
        return None
    due, lag = np.asarray(visible, dtype=np.float64).T
    spread = due - due.mean()
    if not spread.any():
        return None
    return float((spread * (lag - lag.mean())).sum() / (spread * spread).sum())
