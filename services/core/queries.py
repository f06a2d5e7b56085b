"""Queries, as values made from a dataset's description, and the form of their results.

A store renders a query in its own language; a query never holds SQL text. With `scan` the store must read the rows
themselves, so that the durations of queries can be compared. Otherwise it may answer from data kept beside them
(`QueryResult.method`).
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from services.core.dataset import Dataset
from services.core.local_week import Offset
from services.core.rows import Row

MINUTE = 60_000_000
BUCKETS = {"1m": MINUTE, "1h": 60 * MINUTE, "1d": 1440 * MINUTE}

Method = Literal["scan", "metadata", "rollup", "cache"]


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions, all of which must hold. `equals`: pairs of column name and value.

    Times are in microseconds: start <= time < end. `text` is contained in the dataset's `search` column, compared by
    code point; '' always matches.
    """

    equals: tuple[tuple[str, str], ...] = ()
    start: int | None = None
    end: int | None = None
    text: str = ""


def like_pattern(text: str) -> str:
    """Return the LIKE pattern of values that contain `text`. The escape character is the backslash, LIKE's default."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Rows sorted by (`order_by`, id), both in the same direction; text sorts by code point.

    `order_by`: the name of a column; the dataset's time if it is not given.
    `after`: only rows that are sorted after this pair (value of `order_by`, id), for a deep page without an offset.
    """

    dataset: Dataset
    filters: Filters = field(default_factory=Filters)
    order_by: str = ""
    descending: bool = True
    limit: int = 100
    offset: int = 0
    count: bool = True
    after: tuple[str | int, int] | None = None
    scan: bool = False

    def __post_init__(self) -> None:
        if not self.order_by:
            object.__setattr__(self, "order_by", self.dataset.time)

    @property
    def newest_first(self) -> bool:
        return self.descending and self.order_by == self.dataset.time

    @property
    def before(self) -> int | None:
        """Of a list newest first: the exclusive upper bound of the rows' time, in microseconds; None for no bound."""
        bounds = (self.filters.end, int(self.after[0]) + 1 if self.after else None)
        return min((bound for bound in bounds if bound is not None), default=None)


@dataclass(frozen=True, slots=True)
class AggregateQuery:
    """The number of rows for each value of `group_by`, for each time bucket, or for both; at least one is given.

    `bucket`: microseconds, one of BUCKETS. Buckets start at multiples of it since 1970 UTC; empty ones are left out.
    Without a bucket, groups are sorted by count descending, then by value; with a bucket by time, then by value.
    """

    dataset: Dataset
    group_by: str | None
    filters: Filters = field(default_factory=Filters)
    bucket: int | None = None
    scan: bool = False


@dataclass(frozen=True, slots=True)
class StatsQuery:
    """The number of all rows of `dataset`."""

    dataset: Dataset
    scan: bool = False

    @property
    def filters(self) -> Filters:
        return Filters()


Panel = Literal["total", "week", "endpoints", "statuses", "durations"]

STATUS_CLASSES = (("1xx", 100), ("2xx", 200), ("3xx", 300), ("4xx", 400), ("5xx", 500))
"""Each class of HTTP statuses with its first status. A class ends where the next one begins."""
END_OF_STATUSES = 600
NO_STATUS, OTHER_STATUS = "none", "other"
"""The classes of a missing status, and of a number that is no HTTP status."""

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class TrafficQuery:
    """A panel of the dashboard of `footprints`, whose columns the dataset has. `filters` has a start and an end.

    An endpoint is the route of a request, or its link where the route is missing. The rows of a result are, by panel:

    total      (count,), once
    week       (minute, count) for each minute of the local week that has requests, in order; the minute is the
               `local_week.minute_of_week` by `offsets`, which begin at the start of the period
    endpoints  (method, endpoint, count) of the `limit` endpoints with the most requests, sorted by count descending,
               then by method and endpoint
    statuses   (class, count) sorted by class: STATUS_CLASSES, NO_STATUS and OTHER_STATUS; empty ones are left out
    durations  (method, endpoint, count, and a duration for each of PERCENTILES) of the `limit` endpoints that are
               slowest by the second of PERCENTILES, sorted by it descending, then by method and endpoint; requests
               without a duration are left out

    A percentile is exact, by nearest rank: the p-th percentile of n durations is the one at position ceil(n * p / 100)
    in ascending order, so it is a duration that occurred.
    """

    dataset: Dataset
    panel: Panel
    filters: Filters
    offsets: tuple[Offset, ...]
    limit: int = 10
    scan: bool = False


Query = ListQuery | AggregateQuery | StatsQuery | TrafficQuery


@dataclass(frozen=True, slots=True)
class QueryResult:
    """`rows`: canonical rows (list); (value, count), (time, count) or (time, value, count) (aggregate); one (count,)
    (stats); see TrafficQuery for its panels.

    `method`: how the rows were found. For a list with a total, how the total was found: the rows of a page are always
    read by a scan.
    `total`: the number of all rows that match a list's filters, None when it was not wanted. `elapsed_ms`: the time of
    the store, or of the cache; `first_ms` is then the store's time when it gave the result that the cache kept.
    `scanned`: what the store reports as read: "rows", "bytes", "files" of "files_total"; a store may omit any of them.
    """

    rows: list[Row]
    elapsed_ms: float
    method: Method = "scan"
    total: int | None = None
    scanned: dict[str, Any] = field(default_factory=dict)
    first_ms: float | None = None
