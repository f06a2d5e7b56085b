"""Which component was the first to pass its own limit."""

from collections.abc import Sequence

from services.bench.evidence.records import Tables, Trial


def first_to_break(reasons: Sequence[str], failed: Sequence[tuple[Trial, Tables]]) -> str:
    """`reasons`: why the rate was not held. `failed`: the trials of that rate."""
    for _, tables in failed:
        signals = tables.get("signals", {})
        if not signals or not signals["at"]:
            continue
        columns = (signals[name] for name in ("at", "component", "what", "value", "limit"))
        passed = sorted(row for row in zip(*columns, strict=True) if row[3] > row[4])
        if not passed:
            return f"no component passed a limit of its own. The rate was not held: {reasons[0]}"
        at, component, what, value, limit = passed[0]
        return f"{component}, {at / 1e6:.0f} s after the start: {what} {value:,.4g} (limit {limit:,g}). {reasons[0]}"
    return f"not known, because the run had no Prometheus. The rate was not held: {reasons[0]}"
