"""Named questions, as values made from a dataset's description, and the shape of their answers.

A store renders a question once, in its own language. Questions never hold SQL text. `scan`: the rows themselves must be
read, so that times can be compared; otherwise a store may answer from what it keeps beside them (`Answer.method`).
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from services.core.dataset import Dataset
from services.core.rows import Row

MINUTE = 60_000_000
BUCKETS = {"1m": MINUTE, "1h": 60 * MINUTE, "1d": 1440 * MINUTE}

Method = Literal["scan", "metadata", "rollup", "cache"]


@dataclass(frozen=True, slots=True)
class Filters:
    """All must hold. `equals`: (column name, value) pairs. Times in microseconds: start <= time < end.

    `text` stands somewhere in the dataset's `search` column, by code point; '' holds always.
    """

    equals: tuple[tuple[str, str], ...] = ()
    start: int | None = None
    end: int | None = None
    text: str = ""


def like_pattern(text: str) -> str:
    """What LIKE must match for `text` to stand in a value; LIKE's escape is the backslash, as it is by default."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


@dataclass(frozen=True, slots=True)
class ListQuestion:
    """Rows in order of (`order_by`, id), both in the same direction; text by code point.

    `after`: only rows that come later in that order than this (value of `order_by`, id); a deep page without an offset.
    """

    dataset: Dataset
    filters: Filters = field(default_factory=Filters)
    order_by: str = "timestamp"
    descending: bool = True
    limit: int = 100
    offset: int = 0
    count: bool = True
    after: tuple[str | int, int] | None = None
    scan: bool = False

    @property
    def newest_first(self) -> bool:
        return self.descending and self.order_by == self.dataset.time

    @property
    def beyond(self) -> int | None:
        """Of a list newest first: the time, in microseconds, that all its rows are older than; None for no bound."""
        bounds = (self.filters.end, int(self.after[0]) + 1 if self.after else None)
        return min((bound for bound in bounds if bound is not None), default=None)


@dataclass(frozen=True, slots=True)
class AggregateQuestion:
    """How many rows for each value of `group_by`, for each bucket of time, or both; at least one of them.

    `bucket`: microseconds, one of BUCKETS; buckets begin at multiples of it since 1970 UTC; empty ones are left out.
    Without a bucket by count descending, then key; with one by time, then key.
    """

    dataset: Dataset
    group_by: str | None
    filters: Filters = field(default_factory=Filters)
    bucket: int | None = None
    scan: bool = False


@dataclass(frozen=True, slots=True)
class StatsQuestion:
    """How many rows `dataset` has."""

    dataset: Dataset
    scan: bool = False

    @property
    def filters(self) -> Filters:
        return Filters()


Question = ListQuestion | AggregateQuestion | StatsQuestion


@dataclass(frozen=True, slots=True)
class Answer:
    """`rows`: canonical rows (list); (key, count), (time, count) or (time, key, count) (aggregate); or one (count,).

    `total`: all rows that match a list's filters, None when not asked for. `elapsed_ms`: the store's time alone, or
    that of the cache; `first_ms` is then the store's time when it gave the answer that the cache kept.
    `scanned`: what the store says it read: "rows", "bytes", "files" of "files_total"; without what it does not say.
    """

    rows: list[Row]
    elapsed_ms: float
    method: Method = "scan"
    total: int | None = None
    scanned: dict[str, Any] = field(default_factory=dict)
    first_ms: float | None = None
