"""Reads the lake inside this process, by delta-rs and its engine, DataFusion.

DataFusion cannot be interrupted while it makes its next rows. Where queries must end in time, they run in processes
that can be killed (`processes`).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from typing import ClassVar

import pyarrow as pa
from deltalake import QueryBuilder
from deltalake.exceptions import DeltaError

from services.core.dataset import Dataset
from services.core.dead_letter import DeadLettered
from services.core.errors import Invalid, ResultTooLarge
from services.core.queries import Filters, ListQuery, StatsQuery
from services.core.result_size import gather_pages
from services.core.rows import Row
from services.lake import NAME
from services.lake.reader import LakeReader, StatementResult, TimeLimit
from services.lake.snapshot import Snapshot
from services.lake.sql import Dialect, Statement
from services.lake.table import rejects_uri, translated, within_limit

_ROWS_AT_ONCE = 256  # that become Python objects at once: a row may have a quarter of a megabyte
_ROWS_SORTED = 1000  # that are sorted with all their columns
_EXHAUSTED = ("Resources exhausted", "max_temp_directory_size")  # in errors of the engine, which must not use the disk


class OutOfMemory(ResultTooLarge):
    """A query needs more memory than it may use."""

    def __init__(self) -> None:
        super().__init__(
            f"{NAME}: the query needs more memory than it may use: ask for a shorter time range, more filters, or a"
            " smaller limit and offset"
        )


class DataFusion:
    """DataFusion's dialect, which has no parameters."""

    table = "t"
    parameters: Mapping[str, str] = {}

    def name(self, name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    def text(self, value: str) -> str:
        if "\x00" in value:
            raise Invalid("the character NUL stands in no row")
        return "'" + value.replace("'", "''") + "'"

    def instant(self, microseconds: int) -> str:
        return f"to_timestamp_micros({microseconds:d})"

    def microseconds(self, time: str) -> str:
        return f"arrow_cast({time}, 'Int64')"

    def contains(self, text: str, searched: str) -> str:
        return f"strpos({text}, {searched}) > 0"


class EmbeddedReader(LakeReader):
    label: ClassVar[str] = NAME

    def rejected(self, dataset: Dataset, first: int, last: int) -> Iterator[DeadLettered]:
        """Yield the rows of the batches first..last that Spark rejected. Raises StoreDown."""
        engine = self._table(rejects_uri(self._settings, dataset)).engine()
        statement = f"SELECT batch_id, id, rows FROM t WHERE batch_id BETWEEN {first:d} AND {last:d}"  # noqa: S608
        return (DeadLettered(*row) for row in _rows(engine, statement)) if engine else iter(())

    def _dialect(self, snapshot: Snapshot) -> Dialect:
        return DataFusion()

    def _find(self, snapshot: Snapshot, statement: Statement, limit: TimeLimit) -> StatementResult:
        limit.left()
        engine = snapshot.wide_engine if statement.is_wide else snapshot.engine
        with translated(), _within_memory():
            batches = pa.RecordBatchReader.from_stream(engine.execute(statement.text))
            return StatementResult(gather_pages(_pages(batches)), snapshot.files_within(statement.file_conditions))

    def _page(self, snapshot: Snapshot, query: ListQuery, as_of: int, limit: TimeLimit) -> StatementResult:
        """Return the rows of a page. A large page is sorted as places, without the other columns, to save memory.

        While the engine sorts, it holds many more rows than the page has.
        """
        if query.offset + query.limit <= _ROWS_SORTED:
            with suppress(OutOfMemory):  # the rows are long
                return super()._page(snapshot, query, as_of, limit)
        sql = partial(self._sql, snapshot, query.dataset)
        found = self._newest_first(
            snapshot, query, lambda wanted: self._find(snapshot, sql().places(wanted, as_of), limit)
        )
        if not found.rows:
            return found
        rows = self._find(snapshot, sql().between(query, as_of, found.rows[0], found.rows[-1]), limit).rows
        by = query.dataset.column_names.index(query.order_by)
        rows.sort(key=lambda row: (row[by], row[0]), reverse=query.descending)
        return StatementResult(rows[: len(found.rows)], found.files)

    def _stream(self, snapshot: Snapshot, statement: Statement) -> Iterator[Row]:
        return _rows(snapshot.engine, statement.text)

    def _count(
        self, snapshot: Snapshot, query: ListQuery | StatsQuery, as_of: int, limit: TimeLimit
    ) -> StatementResult:
        """Take the number of all rows from the table's log, and subtract the rows after `as_of`, which are counted."""
        stored = snapshot.rows()
        if query.scan or stored is None or query.filters != Filters():
            return super()._count(snapshot, query, as_of, limit)
        later = self._find(snapshot, self._sql(snapshot, query.dataset).count_beyond(as_of), limit)
        return StatementResult([(stored - later.rows[0][0],)], later.files, "metadata")


@contextmanager
def _within_memory() -> Iterator[None]:
    try:
        yield
    except (DeltaError, pa.ArrowException) as error:
        if any(words in str(error) for words in _EXHAUSTED):
            raise OutOfMemory from error
        raise


def _rows(engine: QueryBuilder, statement: str) -> Iterator[Row]:
    """Yield the rows as they are read, one record batch at a time, each within the time limit."""
    batches = within_limit(lambda: pa.RecordBatchReader.from_stream(engine.execute(statement)))
    while (batch := within_limit(lambda: next(batches, None))) is not None:
        yield from chain.from_iterable(_pages([batch]))


def _pages(batches: Iterable[pa.RecordBatch]) -> Iterator[list[Row]]:
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            columns = batch.slice(start, _ROWS_AT_ONCE).columns
            yield list(zip(*(column.to_pylist() for column in columns), strict=True))
