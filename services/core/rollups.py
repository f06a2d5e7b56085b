"""Plans how a rollup answers a query. The code is the same for every store, and makes one plan for each query.

A rollup holds exact counts of rows by the minute of their time and by the dataset's groupings, for all batches below
some batch `until`. The result of a query as of a later batch, between two times, is the sum of three terms:

counts     the counts of whole minutes, of the batches below `until`
newest     the rows of the batches from `until` on
edges      the rows of the earlier batches in the two minutes that the query includes only in part

A store renders these terms in its own language, see `services/stores/*/rollups.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

import xxhash

from services.core.dataset import Dataset
from services.core.ids import end_id, first_id
from services.core.local_week import Offset
from services.core.queries import MINUTE, AggregateQuery, ListQuery, Query, TrafficQuery

_MAX_NAME_BYTES = 63  # of a table in PostgreSQL


def name(dataset: Dataset) -> str:
    """Return the rollup's name. Other groupings make another rollup, so that two versions can run side by side.

    A name that PostgreSQL would cut has a hash of the groupings instead of the groupings.
    """
    spelled = f"{dataset.name}_by_{'_'.join(dataset.groupings)}"
    if len(spelled.encode()) <= _MAX_NAME_BYTES:
        return spelled
    return f"{dataset.name}_by_{xxhash.xxh32_hexdigest(','.join(dataset.groupings).encode())}"


@dataclass(frozen=True, slots=True)
class Times:
    """start <= time < end, in microseconds; None means no bound."""

    start: int | None
    end: int | None


@dataclass(frozen=True, slots=True)
class RowRange:
    """The rows with first_id <= id < end_id at these times."""

    first_id: int
    end_id: int
    times: Times


@dataclass(frozen=True, slots=True)
class Plan:
    """The terms whose sum is the result of `query`: the counts of all batches below `until` in `minutes`, and `rows`.

    No two terms overlap. `keys` are names for the columns that the statement groups by: the time, then the value; they
    are empty when one count is wanted. `order` is what the statement sorts by, with `counted` for the count.
    """

    query: Query
    until: int
    minutes: Times
    rows: tuple[RowRange, ...]
    keys: tuple[LiteralString, ...]
    order: tuple[LiteralString, ...]


def covers(query: Query) -> bool:
    """Return whether a rollup has all that the query needs, and the query does not insist on a scan."""
    dataset, filters = query.dataset, query.filters
    columns = [column for column, _ in filters.equals]
    if isinstance(query, ListQuery) and not query.count:
        return False
    if isinstance(query, AggregateQuery):
        columns += filter(None, [query.group_by])
        if (query.bucket or MINUTE) % MINUTE:
            return False
    if isinstance(query, TrafficQuery) and not (
        query.panel == "total" or (query.panel == "week" and _are_whole_minutes(query.offsets))
    ):
        return False
    return not query.scan and not filters.text and set(dataset.groupings).issuperset(columns)


def _are_whole_minutes(offsets: Sequence[Offset]) -> bool:
    """Return whether all instants of a minute, in UTC, are in the same local minute."""
    return not any(offset.ahead % MINUTE for offset in offsets) and not any(each.start % MINUTE for each in offsets[1:])


def _is_by_bucket(query: Query) -> bool:
    return isinstance(query, AggregateQuery) and query.bucket is not None


def plan(query: Query, until: int, as_of: int) -> Plan | None:
    """Plan a query as of batch `as_of` for a rollup of all batches below `until`, which is at most `as_of` + 1.

    Return None when a scan must answer: the rollup does not cover the query, or would contribute nothing.
    """
    times = Times(query.filters.start, query.filters.end)
    start = None if times.start is None else -(-times.start // MINUTE) * MINUTE
    end = None if times.end is None else times.end // MINUTE * MINUTE
    if not covers(query) or until == 0 or (start is not None and end is not None and start >= end):
        return None
    boundary, last = first_id(until), end_id(as_of)
    rows = [RowRange(boundary, last, times)] if boundary < last else []
    if start != times.start:
        rows.append(RowRange(0, boundary, Times(times.start, start)))
    if end != times.end:
        rows.append(RowRange(0, boundary, Times(end, times.end)))
    by_time = query.panel == "week" if isinstance(query, TrafficQuery) else _is_by_bucket(query)
    by_value = isinstance(query, AggregateQuery) and query.group_by is not None
    keys: tuple[LiteralString, ...] = (*(["counted_time"] if by_time else []), *(["counted_key"] if by_value else []))
    return Plan(query, until, Times(start, end), tuple(rows), keys, keys if by_time else ("counted DESC", *keys))
