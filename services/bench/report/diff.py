"""What differs between two runs: for each cell that both have, the change with its interval."""

import msgspec

from services.bench.evidence.folder import Evidence
from services.bench.plan.cells import FaultCell, ReadCell, WriteCell
from services.bench.plan.loading import parsed
from services.bench.report.numbers import summary
from services.bench.report.reading import MIN_REPEATS
from services.bench.report.statistics import Estimate, Sampled

NOT_SEPARABLE = "not separable"

_APART = 1000  # between the seeds of the two: repeat N of one run is not a pair of repeat N of another


class Change(msgspec.Struct, frozen=True):
    """`ratio`: the median response time of the second run, as a multiple of that of the first."""

    key: str
    ratio: Estimate
    verdict: str


class Changes(msgspec.Struct, frozen=True):
    """`surroundings`: what differs of machine, versions, target, settings and plan, which may explain the changes."""

    changes: list[Change]
    only_first: list[str]
    only_second: list[str]
    void: list[str]
    surroundings: list[str]


def diff(first: Evidence, second: Evidence) -> Changes:
    """Compare the cells that neither run found void. Blocks."""
    sides = (_sampled(first, 0), _sampled(second, _APART))
    void = {void.key for side in (first, second) for void in summary(side).voids}
    changes = []
    for key in sides[0]:
        if key in void or key not in sides[1]:
            continue
        (before, repeats), (after, others) = sides[0][key], sides[1][key]
        if ratio := before.ratio(after):
            changes.append(Change(key, ratio.scaled(1), _verdict(ratio, min(repeats, others))))
    return Changes(
        changes,
        sorted(sides[0].keys() - sides[1].keys()),
        sorted(sides[1].keys() - sides[0].keys()),
        sorted(void),
        _surroundings(first, second),
    )


def _sampled(evidence: Evidence, apart: int) -> dict[str, tuple[Sampled, int]]:
    """Return the response times of each cell that has some, and its repeats."""
    plan = parsed(evidence.plan, str(evidence.folder / "plan.yaml"))
    found: dict[str, list[list[int]]] = {}
    for trial in evidence.trials():
        if isinstance(trial.cell, ReadCell | WriteCell | FaultCell):
            tables = evidence.tables(trial)
            table = tables["reads"] if isinstance(trial.cell, ReadCell) else tables["writes"]
            found.setdefault(trial.cell.key, []).append(table["response"])
    return {key: (Sampled(repeats, plan.seed + apart), len(repeats)) for key, repeats in found.items()}


def _verdict(ratio: Estimate, repeats: int) -> str:
    if repeats < MIN_REPEATS or ratio.low <= 1 <= ratio.high:
        return NOT_SEPARABLE
    return "slower" if ratio.low > 1 else "faster"


def _surroundings(first: Evidence, second: Evidence) -> list[str]:
    found = [] if first.plan == second.plan else ["the plans differ"]
    for part in ("machine", "versions", "target", "settings"):
        before, after = getattr(first.about, part), getattr(second.about, part)
        found += [
            f"{part}, {name}: {before.get(name, 'none')} -> {after.get(name, 'none')}"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
    return found
