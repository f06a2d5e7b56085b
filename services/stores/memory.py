"""A store in memory for tests, both writer and reader. The contract suites hold it to the same rules as real stores."""

import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, ClassVar, Literal
from uuid import uuid4

import msgspec

from services.core import kafka_value
from services.core.completion import complete
from services.core.dataset import Dataset
from services.core.errors import RowRejected
from services.core.ids import batch_of, end_id, first_id
from services.core.ledger import Batch
from services.core.line_fields import line_fields
from services.core.lines import line_check
from services.core.local_week import minute_of_week
from services.core.ports import DEFAULT_QUERY_SECONDS, Block, group_token
from services.core.queries import (
    END_OF_STATUSES,
    NO_STATUS,
    OTHER_STATUS,
    PERCENTILES,
    STATUS_CLASSES,
    AggregateQuery,
    Filters,
    ListQuery,
    Query,
    QueryResult,
    StatsQuery,
    TrafficQuery,
)
from services.core.result_size import gather_pages, refuse_many_groups
from services.core.rows import Row
from services.core.stopping import Stop


class MemoryStore:
    name: ClassVar[str] = "memory"
    progress: ClassVar[Literal["sink"]] = "sink"

    def __init__(self) -> None:
        self._written: dict[str, dict[str, list[Row]]] = {}
        self._table_ids: dict[str, str] = {}

    def prepare(self, dataset: Dataset) -> None:
        self._written.setdefault(dataset.name, {})
        self._table_ids.setdefault(dataset.name, str(uuid4()))

    def drop(self, dataset: Dataset) -> None:
        """Lose the dataset's table, as a database with a new disk does."""
        del self._written[dataset.name], self._table_ids[dataset.name]

    def forget_rows(self, dataset: Dataset) -> None:
        """Lose all rows, but remember their tokens."""
        self._written[dataset.name] = {token: [] for token in self._written[dataset.name]}

    def table_id(self, dataset: Dataset) -> str:
        return self._table_ids.get(dataset.name, "")

    def write(self, blocks: Sequence[Block]) -> None:
        dataset, lines = blocks[0].dataset, [line for block in blocks for line in kafka_value.split(block.lines)]
        if problems := line_check(dataset).check(lines).problems:
            raise RowRejected(None, next(iter(problems.values())))
        rows = [_row(dataset, msgspec.json.decode(line)) for line in lines]
        self._written[dataset.name].setdefault(group_token(blocks), rows)

    def complete(self, blocks: Sequence[Block]) -> Sequence[RowRejected]:
        return complete(self.name, blocks, lambda _: {row[0] for row in self._all(blocks[0].dataset)}, self.write)

    def stored_ids(self, dataset: Dataset, ids: Set[int]) -> Set[int]:
        return {row[0] for row in self._all(dataset)} & ids

    def end_writes(self, dataset: Dataset) -> None:
        """Nothing to do: a write ends before another thread can act."""

    def execute(
        self, query: Query, as_of: int, seconds: float = DEFAULT_QUERY_SECONDS, stop: Stop | None = None
    ) -> QueryResult:
        dataset = query.dataset
        rows = [row for row in self._all(dataset) if row[0] < end_id(as_of) and _matches(dataset, query.filters, row)]
        scanned = {"rows": sum(1 for _ in self._all(dataset))}
        match query:
            case ListQuery():
                by = dataset.column_names.index(query.order_by)
                total = len(rows) if query.count else None
                rows.sort(key=lambda row: (row[by], row[0]), reverse=query.descending)
                if after := query.after:
                    later = operator.lt if query.descending else operator.gt
                    rows = [row for row in rows if later((row[by], row[0]), after)]
                page = rows[query.offset : query.offset + query.limit]
                return QueryResult(gather_pages([page]), 0.0, total=total, scanned=scanned)
            case AggregateQuery():
                return QueryResult(gather_pages([refuse_many_groups(_counted(query, rows))]), 0.0, scanned=scanned)
            case TrafficQuery():
                return QueryResult(_panel(query, rows), 0.0, scanned=scanned)
            case StatsQuery():
                return QueryResult([(len(rows),)], 0.0, scanned=scanned)

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        return _counts(self.rows(dataset, first, last))

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        return (row for row in self._all(dataset) if first_id(first) <= row[0] < end_id(last))

    def counts_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[tuple[int, int, int]]:
        return _counts(self.rows_of(dataset, batches))

    def rows_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[Row]:
        wanted = {batch.batch_id for batch in batches}
        return (row for row in self._all(dataset) if batch_of(row[0]) in wanted)

    def close(self) -> None:
        pass

    def _all(self, dataset: Dataset) -> Iterator[Row]:
        for rows in self._written.get(dataset.name, {}).values():
            yield from rows


def _counts(rows: Iterator[Row]) -> Iterator[tuple[int, int, int]]:
    ids: dict[int, list[int]] = {}
    for row in rows:
        ids.setdefault(batch_of(row[0]), []).append(row[0])
    for batch_id, found in sorted(ids.items()):
        yield batch_id, len(found), len(set(found))


def _counted(query: AggregateQuery, rows: list[Row]) -> list[Row]:
    names = query.dataset.column_names
    counts: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        time = row[names.index(query.dataset.time)]
        bucket = [time - time % query.bucket] if query.bucket else []
        counts[*bucket, *([row[names.index(query.group_by)]] if query.group_by else [])] += 1
    if query.bucket:
        return sorted((*place, count) for place, count in counts.items())
    return sorted(((key, count) for (key,), count in counts.items()), key=lambda item: (-item[1], item[0]))


def _panel(query: TrafficQuery, rows: list[Row]) -> list[Row]:
    requests = [dict(zip(query.dataset.column_names, row, strict=True)) for row in rows]
    match query.panel:
        case "total":
            return [(len(requests),)]
        case "week":
            times = (request[query.dataset.time] for request in requests)
            return sorted(Counter(minute_of_week(time, query.offsets) for time in times).items())
        case "endpoints":
            counts = Counter((request["method"], request["route"] or request["link"]) for request in requests)
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            return [(*endpoint, count) for endpoint, count in ranked[: query.limit]]
        case "statuses":
            return sorted(Counter(_status_class(request["status"]) for request in requests).items())
        case "durations":
            return _slowest(requests, query.limit)


def _status_class(status: float | None) -> str:
    if status is None:
        return NO_STATUS
    if not STATUS_CLASSES[0][1] <= status < END_OF_STATUSES:
        return OTHER_STATUS
    return next(name for name, first in reversed(STATUS_CLASSES) if status >= first)


def _slowest(requests: Sequence[Mapping[str, Any]], limit: int) -> list[Row]:
    durations: dict[tuple[str, str], list[float]] = {}
    for request in requests:
        if request["duration_ms"] is not None:
            endpoint = request["method"], request["route"] or request["link"]
            durations.setdefault(endpoint, []).append(request["duration_ms"] + 0.0)
    slowest: list[Row] = [
        (*endpoint, len(found), *(sorted(found)[-(-len(found) * percentile // 100) - 1] for percentile in PERCENTILES))
        for endpoint, found in durations.items()
    ]
    return sorted(slowest, key=lambda row: (-row[4], row[:2]))[:limit]


def _row(dataset: Dataset, line: dict[str, Any]) -> Row:
    found = ((field, line.get(field.name)) for field in line_fields(dataset))
    return tuple(field.missing if value is None else value for field, value in found)


def _matches(dataset: Dataset, filters: Filters, row: Row) -> bool:
    value = dict(zip(dataset.column_names, row, strict=True))
    time = value[dataset.time]
    return (
        all(value[name] == wanted for name, wanted in filters.equals)
        and (filters.start is None or time >= filters.start)
        and (filters.end is None or time < filters.end)
        and (not filters.text or (dataset.search is not None and filters.text in value[dataset.search]))
    )
