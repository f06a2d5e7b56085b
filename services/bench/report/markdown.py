"""The summary as Markdown, for docs and terminals."""

from collections.abc import Iterable, Sequence

from services.bench.report.statistics import Estimate, needed
from services.bench.report.summary import (
    QUANTILES,
    ControlResult,
    FaultResult,
    LoadResult,
    Quantiles,
    ReadCondition,
    Summary,
    WriteResult,
)


def page(summary: Summary) -> str:
    parts = [
        [f"# {summary.plan}", "", summary.about, ""],
        [f"**{summary.status}**", ""] if summary.status else [],
        ["## Findings", "", *(f"- {finding}" for finding in summary.findings or ["None."]), ""],
        [*(f"- {note}" for note in summary.notes), ""] if summary.notes else [],
        _voids(summary),
        _reads("Reads", summary.reads),
        _reads("Reads while rows come in", summary.mixed),
        _writes(summary.writes),
        _loads(summary.loads, summary.slo),
        _faults(summary.faults),
        _controls(summary.controls),
        _thresholds(summary),
        *(
            _pairs(title, pairs)
            for title, pairs in (
                ("Target", summary.target),
                ("Machine of the driver", summary.machine),
                ("Versions", summary.versions),
            )
        ),
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def shown(estimate: Estimate | None, q: float | None = None) -> str:
    """Return a value with its interval, or why there is none."""
    if estimate is None:
        return f"n < {needed(q):,}" if q else "-"
    interval = f" ({number(estimate.low)} to {number(estimate.high)})" if estimate.low != estimate.high else ""
    return f"{number(estimate.value)}{interval}"


def number(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _voids(summary: Summary) -> list[str]:
    if not summary.voids:
        return []
    rows = ((f"`{void.key}`", "; ".join(void.reasons)) for void in summary.voids)
    return ["## Void cells", "", "They are not ranked.", "", *_table(("cell", "reasons"), rows), ""]


def _reads(title: str, conditions: Sequence[ReadCondition]) -> list[str]:
    if not conditions:
        return []
    rows = [
        (
            _condition(condition),
            result.label,
            *(shown(result.response[name], q) for name, q in QUANTILES.items()),
            shown(result.store_ms),
            str(result.samples),
            "void" if result.void else "fastest" if condition.winner == result.store else "",
        )
        for condition in conditions
        for result in condition.results
    ]
    head = ("cell", "store", *(f"{name}, ms" for name in QUANTILES), "store's own p50, ms", "samples", "")
    return [f"## {title}", "", *_table(head, rows), ""]


def _condition(condition: ReadCondition) -> str:
    rows = f"{condition.rows:,} rows" if condition.share is None else f"{condition.share:.0%} of the knee"
    rate = f"{condition.rate:g}/s" if condition.rate else "alone"
    return f"{condition.query}, {rows}, {condition.state}, {condition.method}, {rate}"


def _writes(results: Sequence[WriteResult]) -> list[str]:
    if not results:
        return []
    rows = [
        (
            f"{result.phase} {result.rate:,}",
            shown(result.sustained),
            f"{result.accepted:,} / {result.refused:,} / {result.indeterminate:,}",
            *(shown(result.response[name], q) for name, q in QUANTILES.items()),
            "void" if result.void else "held" if result.held else "not held",
        )
        for result in results
    ]
    head = ("rows/min", "sustained", "accepted / refused / indeterminate", *(f"{name}, ms" for name in QUANTILES), "")
    return [
        *("## Writes", "", *_table(head, rows), ""),
        *(f"- {result.phase} {result.rate:,}: {reason}" for result in results for reason in result.unheld),
        *_shares(results),
        *("", "### Freshness", "", "From the intended time of a request until a query of the store reads it.", ""),
        *_table(("rows/min", "store", *(f"{name}, ms" for name in QUANTILES), "drained, s"), _freshness(results)),
        "",
        *_costs(results),
    ]


def _shares(results: Sequence[WriteResult]) -> list[str]:
    arms = list(dict.fromkeys(arm for result in results for arm in result.shares))
    if not arms:
        return []
    rows = [
        (
            f"{result.phase} {result.rate:,}",
            shown(result.sustained.scaled(1 / 60)),
            *(shown(result.shares[arm].scaled(100)) for arm in arms),
        )
        for result in results
    ]
    head = ("rows/min", "sustained, rows/s", *(f"of {arm}, %" for arm in arms))
    about = "The sustained rows a second, and what share they are of those of a control arm."
    return ["", "### Shares of the control arms", "", about, "", *_table(head, rows)]


def _freshness(results: Iterable[WriteResult]) -> Iterable[Sequence[str]]:
    for result in results:
        for store, quantiles in result.freshness.items():
            drained = result.drained[store]
            yield (
                f"{result.phase} {result.rate:,}",
                store,
                *_quantiles(quantiles),
                "not in time" if drained is None else number(drained),
            )


def _quantiles(quantiles: Quantiles) -> list[str]:
    return [shown(quantiles[name], q) for name, q in QUANTILES.items()]


def _costs(results: Iterable[WriteResult]) -> list[str]:
    rows = [
        (
            f"{result.phase} {result.rate:,}",
            component,
            number(result.cpu[component]) if component in result.cpu else "-",
            number(result.disk[component] / 1e6) if component in result.disk else "-",
        )
        for result in results
        for component in sorted({*result.cpu, *result.disk})
    ]
    if not rows:
        return []
    return ["### Cost of a million rows", "", *_table(("rows/min", "component", "CPU-s", "MB on disk"), rows), ""]


def _loads(results: Sequence[LoadResult], slo: str) -> list[str]:
    if not results:
        return []
    rows = [
        (
            result.scenario,
            result.label,
            f"{result.rate:g}",
            f"{result.beyond:g}" if result.beyond else "-",
            *_quantiles(result.response),
            "; ".join(result.missed),
        )
        for result in results
    ]
    head = ("scenario", "store", "held, 1/s", "not held, 1/s", *(f"{name}, ms" for name in QUANTILES), "because")
    return ["## Load by k6", "", f"Held: {slo}.", "", *_table(head, rows), ""]


def _faults(results: Sequence[FaultResult]) -> list[str]:
    if not results:
        return []
    rows = [
        (
            result.component,
            _seconds(result.recovered),
            ", ".join(f"{store} {_seconds(each)}" for store, each in result.visible.items()),
            f"{result.accepted:,} / {result.refused:,} / {result.indeterminate:,}",
            "void" if result.void else "no accepted row lost",
        )
        for result in results
    ]
    head = ("killed", "replies recovered, s", "freshness recovered, s", "accepted / refused / indeterminate", "")
    return ["## Faults", "", *_table(head, rows), ""]


def _seconds(values: Iterable[float | None]) -> str:
    return " / ".join("never" if value is None else number(value) for value in values)


def _controls(results: Sequence[ControlResult]) -> list[str]:
    if not results:
        return []
    rows = [(result.arm, name, shown(value)) for result in results for name, value in result.values.items()]
    return ["## Control arms", "", *_table(("arm", "", "value"), rows), ""]


def _thresholds(summary: Summary) -> list[str]:
    return _pairs("Thresholds", {name: f"{value:g}" for name, value in summary.thresholds.items()})


def _pairs(title: str, pairs: dict[str, str]) -> list[str]:
    return [f"## {title}", "", *_table(("", ""), pairs.items()), ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
