"""The lake read inside this process, by delta-rs and its engine, DataFusion.

DataFusion cannot be interrupted while it makes its next rows. A question over its time limit is told so at once; its
work is dropped with the next rows it gives, and keeps one of few places until then, so that such work never piles up.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from functools import partial
from threading import BoundedSemaphore
from typing import ClassVar, Protocol

import pyarrow as pa
from deltalake import QueryBuilder

from services.core.dataset import Dataset
from services.core.errors import Backpressure, Invalid
from services.core.queries import Filters, ListQuestion, StatsQuestion
from services.core.rows import Row
from services.lake.reader import Found, LakeReader, Limit
from services.lake.snapshot import Snapshot
from services.lake.sql import Dialect, Query
from services.lake.table import NAME, Result, rejects_uri, started, translated, within_limit
from services.runtime.settings import LakeSettings

_PLACES = 8


class _Run(Protocol):
    def __call__(self, work: Callable[[], Result]) -> Result: ...


class DataFusion:
    """Its dialect of SQL. It has no parameters."""

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

    def contains(self, text: str, part: str) -> str:
        return f"strpos({text}, {part}) > 0"


class EmbeddedReader(LakeReader):
    source: ClassVar[str] = "hdfs"
    engine: ClassVar[str] = "embedded"
    label: ClassVar[str] = NAME

    def __init__(self, settings: LakeSettings) -> None:
        super().__init__(settings)
        self._places = BoundedSemaphore(_PLACES)

    def rejected(self, dataset: Dataset) -> Iterator[tuple[int, int | None, int]]:
        """(batch, id, 1) of each row put aside instead of stored, (batch, None, rows) where no id could be read.

        Raises StoreDown.
        """
        engine = self._table(rejects_uri(self._settings, dataset)).engine()
        query = "SELECT batch_id, id, rows FROM t WHERE batch_id IS NOT NULL"
        return _ask(engine, query, within_limit) if engine else iter(())

    def _dialect(self, snapshot: Snapshot) -> Dialect:
        return DataFusion()

    def _find(self, snapshot: Snapshot, query: Query, limit: Limit) -> Found:
        rows = list(_ask(snapshot.engine, query.text, partial(self._in_time, limit)))
        return Found(rows, snapshot.files_within(query.bounds))

    def _stream(self, snapshot: Snapshot, query: Query) -> Iterator[Row]:
        return _ask(snapshot.engine, query.text, within_limit)

    def _count(self, snapshot: Snapshot, question: ListQuestion | StatsQuestion, as_of: int, limit: Limit) -> Found:
        """The table's log counts all rows: only those that came after `as_of` are read, to leave them out."""
        stored = snapshot.rows()
        if question.scan or stored is None or question.filters != Filters():
            return super()._count(snapshot, question, as_of, limit)
        later = self._find(snapshot, self._sql(snapshot, question.dataset).count_beyond(as_of), limit)
        return Found([(stored - later.rows[0][0],)], later.files, "metadata")

    def _in_time(self, limit: Limit, work: Callable[[], Result]) -> Result:
        if not self._places.acquire(timeout=limit.left()):
            raise Backpressure(f"{NAME}: {_PLACES} questions are being worked on, some of them over their time limit")

        def placed() -> Result:
            try:
                return work()
            finally:
                self._places.release()

        under_way = started(placed)
        if not wait([under_way], limit.left()).done:
            raise limit.passed()
        with translated():
            return under_way.result()


def _ask(engine: QueryBuilder, query: str, run: _Run) -> Iterator[Row]:
    """Rows as they are read, a record batch at a time; each piece of the work by `run`."""
    batches = run(lambda: pa.RecordBatchReader.from_stream(engine.execute(query)))
    while (batch := run(lambda: next(batches, None))) is not None:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
