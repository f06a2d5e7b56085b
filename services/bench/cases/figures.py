"""What a benchmark found, and the page it is published on."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.bench.evidence.surroundings import machine, versions


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the table of goals. `better`: whether more or less is wanted. Values share `unit`."""

    name: str
    unit: str
    values: list[float]
    floor: float
    goal: float
    better: str = "more"
    notes: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        def reached(bar: float) -> bool:
            return self.median >= bar if self.better == "more" else self.median <= bar

        return "goal reached" if reached(self.goal) else "floor reached" if reached(self.floor) else "below the floor"


@dataclass(frozen=True, slots=True)
class Matrix:
    """The same queries to several engines: `cells` and `notes` by (query, engine); less is better."""

    title: str
    unit: str
    cells: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        best = {
            query: min(statistics.median(values) for (other, _), values in self.cells.items() if other == query)
            for query, _ in self.cells
        }
        return [
            f"## {self.title}",
            "",
            f"| query | engine | median, {self.unit} | min … max | runs | against the best | read |",
            "|---|---|---:|---|---:|---:|---|",
            *(self._line(query, engine, best) for query, engine in self.notes),
            "",
        ]

    def _line(self, query: str, engine: str, best: Mapping[str, float]) -> str:
        note, values = self.notes[query, engine], self.cells.get((query, engine))
        if values is None:
            return f"| {query} | {engine} | - | | | | {note} |"
        median = statistics.median(values)
        return (
            f"| {query} | {engine} | {median:,.4g} | {min(values):,.4g} … {max(values):,.4g} | {len(values)} |"
            f" {median / best[query]:,.3g} x | {note} |"
        )


@dataclass(frozen=True, slots=True)
class Table:
    """Measured values that have no goal. Each row of `rows` has a value for each name of `head`."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str | float, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [
            f"## {self.title}",
            "",
            f"| {' | '.join(self.head)} |",
            f"|{'---|' * len(self.head)}",
            *(f"| {' | '.join(map(_spelled, row))} |" for row in self.rows),
            "",
            *([*(f"- {note}" for note in self.notes), ""] if self.notes else []),
        ]


def _spelled(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return value if isinstance(value, str) else f"{value:,}"


def publish(
    folder: Path,
    name: str,
    figures: Sequence[Figure],
    matrices: Sequence[Matrix] = (),
    tables: Sequence[Table] = (),
) -> Path:
    """Write `<name>.md` and `<name>.json` into `folder`; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    measured_on, when = machine() | versions(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    data: dict[str, Any] = {"when": when, "machine": measured_on, "figures": [asdict(f) for f in figures]}
    if matrices:
        data["matrices"] = [
            {"title": m.title, "unit": m.unit, "cells": [[*place, values] for place, values in m.cells.items()]}
            for m in matrices
        ]
    if tables:
        data["tables"] = [asdict(table) for table in tables]
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    lines = [
        f"# {name}",
        "",
        f"Measured {when} by `make bench`, everything on the one machine, load generator included.",
        "",
        *(_lines(figures) if figures else ()),
        *(line for matrix in matrices for line in matrix.lines()),
        *(line for table in tables for line in table.lines()),
        "| machine | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in measured_on.items()),
    ]
    page = folder / f"{name}.md"
    page.write_text("\n".join(lines) + "\n")
    return page


def _lines(figures: Sequence[Figure]) -> list[str]:
    return [
        "| figure | unit | median | min … max | runs | floor | goal | |",
        "|---|---|---:|---|---:|---:|---:|---|",
        *(
            f"| {f.name} | {f.unit} | {f.median:,.4g} | {min(f.values):,.4g} … {max(f.values):,.4g} | {len(f.values)} |"
            f" {f.floor:,.4g} | {f.goal:,.4g} | {f.verdict} |"
            for f in figures
        ),
        "",
        *(f"- **{f.name}**: {note}" for f in figures for note in f.notes),
        "",
    ]
