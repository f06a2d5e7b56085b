"""Named questions, as values made from a dataset's description, and the shape of their answers.

A store renders a question once, in its own language. Questions never hold SQL text.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from services.core.dataset import Dataset
from services.core.rows import Row

Method = Literal["scan", "metadata", "rollup", "cache"]


@dataclass(frozen=True, slots=True)
class Filters:
    """All must hold. `equals`: (column name, value) pairs. Times in microseconds: start <= time < end."""

    equals: tuple[tuple[str, str], ...] = ()
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class ListQuestion:
    """Rows in order of (`order_by`, id), both in the same direction; text by code point."""

    dataset: Dataset
    filters: Filters = field(default_factory=Filters)
    order_by: str = "timestamp"
    descending: bool = True
    limit: int = 100
    offset: int = 0
    count: bool = True


@dataclass(frozen=True, slots=True)
class AggregateQuestion:
    """How many rows for each value of `group_by`, by count descending, then key ascending."""

    dataset: Dataset
    group_by: str
    filters: Filters = field(default_factory=Filters)


@dataclass(frozen=True, slots=True)
class StatsQuestion:
    """How many rows `dataset` has."""

    dataset: Dataset


Question = ListQuestion | AggregateQuestion | StatsQuestion


@dataclass(frozen=True, slots=True)
class Answer:
    """`rows`: canonical rows (list), (key, count) pairs (aggregate) or one (count,) (stats).

    `total`: all rows that match a list's filters, None when not asked for. `elapsed_ms`: the store's time alone.
    `scanned`: what the store says it read, e.g. {"rows": 12000} or {"files": 3}; empty when it does not say.
    """

    rows: list[Row]
    elapsed_ms: float
    method: Method = "scan"
    total: int | None = None
    scanned: dict[str, Any] = field(default_factory=dict)
