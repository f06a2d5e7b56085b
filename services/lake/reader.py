"""Reads the lake by any engine: renders a query as SQL, and runs it on one version of a table."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from services.core.dataset import Dataset
from services.core.errors import QueryTimeout
from services.core.ids import batch_of
from services.core.ledger import Batch, StorePosition
from services.core.ports import DEFAULT_QUERY_SECONDS
from services.core.queries import AggregateQuery, ListQuery, Method, Query, QueryResult, StatsQuery, TrafficQuery
from services.core.result_size import refuse_many_groups
from services.core.rows import Row
from services.core.stopping import Stop
from services.lake import NAME
from services.lake.snapshot import Snapshot
from services.lake.sql import Dialect, Renderer, Statement
from services.lake.table import Table, table_uri
from services.lake.traffic import TrafficRenderer
from services.runtime.settings import LakeSettings

_WINDOW = 512  # batches that are counted at once, which bounds the number of ids in memory

# For a page of the newest rows, the reader first reads about this many rows for each row of the page.
_ROWS_FOR_ONE = 100
_FEWEST = 100_000  # reading fewer rows is no faster


class TimeLimit:
    """The time limit of a query. `stop` may end the query earlier."""

    def __init__(self, store: str, seconds: float, stop: Stop | None = None) -> None:
        self.stop = stop or Stop()
        self._store = store
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left, more than 0. Raises QueryTimeout."""
        if (left := self._deadline - time.monotonic()) <= 0:
            raise self.passed()
        return left

    def passed(self) -> QueryTimeout:
        return QueryTimeout(self._store, self._seconds)


@dataclass(frozen=True, slots=True)
class StatementResult:
    """The rows that a statement returned. `files`: the number of files that it read."""

    rows: list[Row]
    files: int
    method: Method = "scan"


class LakeReader(ABC):
    """An OwnProgressReader, which opens a table at its first use. A subclass for each engine renders and runs the SQL.

    `label`: the engine in texts for people. `memory`: bytes that a query may use in this process, None for no limit.
    """

    name: ClassVar[str] = NAME
    progress: ClassVar[Literal["own"]] = "own"
    label: ClassVar[str]

    def __init__(self, settings: LakeSettings, memory: int | None = None) -> None:
        self._settings = settings
        self._memory = memory
        self._tables: dict[str, Table] = {}

    @abstractmethod
    def _dialect(self, snapshot: Snapshot) -> Dialect:
        """Return a new dialect, for one statement."""

    @abstractmethod
    def _find(self, snapshot: Snapshot, statement: Statement, limit: TimeLimit) -> StatementResult:
        """Return all rows at once. Raises StoreDown, ResultTooLarge, or QueryTimeout when the limit has passed."""

    @abstractmethod
    def _stream(self, snapshot: Snapshot, statement: Statement) -> Iterator[Row]:
        """Yield the rows as they are read. Raises StoreDown."""

    def execute(
        self, query: Query, as_of: int, seconds: float = DEFAULT_QUERY_SECONDS, stop: Stop | None = None
    ) -> QueryResult:
        start, limit = time.perf_counter(), TimeLimit(self.label, seconds, stop)
        snapshot = self._snapshot(query.dataset)
        if snapshot is None:
            return _result_without_table(query, start)
        counted = None
        match query:
            case ListQuery():
                if query.count:
                    counted = self._count(snapshot, query, as_of, limit)
                if counted and counted.rows[0][0] <= query.offset:
                    found = StatementResult([], counted.files)
                else:
                    found = self._page(snapshot, query, as_of, limit)
            case AggregateQuery():
                statement = self._sql(snapshot, query.dataset).groups(query, as_of)
                found = self._find(snapshot, statement, limit)
                refuse_many_groups(found.rows)
            case TrafficQuery():
                traffic = TrafficRenderer(query.dataset, snapshot.columns, self._dialect(snapshot))
                found = self._find(snapshot, traffic.panel(query, as_of), limit)
            case StatsQuery():
                found = self._count(snapshot, query, as_of, limit)
        statements = [found, counted] if counted else [found]
        return QueryResult(
            found.rows,
            _ms_since(start),
            method=next((each.method for each in statements if each.method != "scan"), "scan"),
            total=counted.rows[0][0] if counted else None,
            scanned={"files": max(each.files for each in statements), "files_total": snapshot.files.num_rows},
        )

    def position(self, dataset: Dataset) -> StorePosition:
        return self._table(table_uri(self._settings, dataset.name)).own_position()

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        snapshot = self._snapshot(dataset)
        while snapshot and first <= last:
            window = min(last, first + _WINDOW - 1)
            found = list(self._stream(snapshot, self._sql(snapshot, dataset).batches(first, window)))
            yield from ((batch_id, rows, ids) for batch_id, rows, ids in found)
            first = window + 1
            if not found:
                ((lowest,),) = self._stream(snapshot, self._sql(snapshot, dataset).lowest(first, last))
                first = last + 1 if lowest is None else batch_of(lowest)

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        snapshot = self._snapshot(dataset)
        return self._stream(snapshot, self._sql(snapshot, dataset).rows(first, last)) if snapshot else iter(())

    def counts_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[tuple[int, int, int]]:
        if (snapshot := self._snapshot(dataset)) is None:
            return
        for at in range(0, len(batches), _WINDOW):
            statement = self._sql(snapshot, dataset).counts_of(batches[at : at + _WINDOW])
            yield from ((batch_id, rows, ids) for batch_id, rows, ids in self._stream(snapshot, statement))

    def rows_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[Row]:
        """Yield the rows. Only the files of these days whose statistics allow these ids are opened."""
        if (snapshot := self._snapshot(dataset)) is None:
            return
        for at in range(0, len(batches), _WINDOW):
            statement = self._sql(snapshot, dataset).rows_of(batches[at : at + _WINDOW])
            yield from self._stream(snapshot, statement)

    def close(self) -> None:
        self._tables.clear()

    def _page(self, snapshot: Snapshot, query: ListQuery, as_of: int, limit: TimeLimit) -> StatementResult:
        return self._newest_first(
            snapshot,
            query,
            lambda wanted: self._find(snapshot, self._sql(snapshot, wanted.dataset).page(wanted, as_of), limit),
        )

    def _newest_first(
        self, snapshot: Snapshot, query: ListQuery, find: Callable[[ListQuery], StatementResult]
    ) -> StatementResult:
        """Look for the page among the newest rows first. If they fill the page, no other rows are read."""
        if recent := _recent(snapshot, query):
            found = find(recent)
            if len(found.rows) == query.limit:
                return found
        return find(query)

    def _count(
        self, snapshot: Snapshot, query: ListQuery | StatsQuery, as_of: int, limit: TimeLimit
    ) -> StatementResult:
        """Return one row with one value, the number of rows that match the filters."""
        return self._find(snapshot, self._sql(snapshot, query.dataset).count(query.filters, as_of), limit)

    def _sql(self, snapshot: Snapshot, dataset: Dataset) -> Renderer:
        """Return a renderer for one statement."""
        return Renderer(dataset, snapshot.columns, self._dialect(snapshot))

    def _snapshot(self, dataset: Dataset) -> Snapshot | None:
        return self._table(table_uri(self._settings, dataset.name)).snapshot()

    def _table(self, uri: str) -> Table:
        return self._tables.setdefault(uri, Table(uri, self._memory))


def _recent(snapshot: Snapshot, query: ListQuery) -> ListQuery | None:
    """Return the query, limited to the newest rows that its page is likely to need; None if it would read as many."""
    filters = query.filters
    if not query.newest_first:
        return None
    rows = max(_FEWEST, (query.offset + query.limit) * _ROWS_FOR_ONE)
    since = snapshot.estimated_start(query.dataset.time, query.before, rows)
    if since is None or (filters.start is not None and filters.start >= since):
        return None
    return replace(query, filters=replace(filters, start=since))


def _result_without_table(query: Query, start: float) -> QueryResult:
    is_count = isinstance(query, StatsQuery) or (isinstance(query, TrafficQuery) and query.panel == "total")
    rows: list[Row] = [(0,)] if is_count else []
    total = 0 if isinstance(query, ListQuery) and query.count else None
    return QueryResult(rows, _ms_since(start), total=total, scanned={"files": 0, "files_total": 0})


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
