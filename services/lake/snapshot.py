"""One version of a table: a query engine for it, and the statistics of its files, by which files are left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder

from services.core.dataset import ID

FileConditions = Sequence[tuple[str, int | None, int | None]]
"""Conditions that all hold, and that the statistics of files can decide: (column, lowest value, first value above).

Times are in microseconds. None stands for no limit.
"""

_WIDE_ROWS = 256
_TRUNCATED = 999  # the greatest time of a file is logged in whole milliseconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`files`: one row for each file, with the least and greatest values of columns as min.* and max.*.

    `engine` and `wide_engine` know the table as `t`. `wide_engine` is for queries that read texts: it reads fewer rows
    at once, because a row may have a quarter of a megabyte.
    """

    uri: str
    version: int
    engine: QueryBuilder
    wide_engine: QueryBuilder
    columns: frozenset[str]
    files: pa.Table

    @classmethod
    def of(cls, table: DeltaTable, memory: int | None = None) -> "Snapshot":
        """Take a snapshot of the handle's current version. `memory`: bytes that a query may use; None for no limit."""
        return cls(
            uri=table.table_uri,
            version=table.version(),
            engine=_engine(table, memory),
            wide_engine=_engine(table, memory, {"datafusion.execution.batch_size": str(_WIDE_ROWS)}),
            columns=frozenset(field.name for field in table.schema().fields),
            files=pa.RecordBatchReader.from_stream(table.get_add_actions(flatten=True)).read_all(),
        )

    def files_within(self, file_conditions: FileConditions) -> int:
        """Return how many files may hold rows that meet all `file_conditions`: the engine opens these files."""
        conditions = []
        for column, least, beyond in file_conditions:
            if beyond is not None and (low := self._statistic("min", column)) is not None:
                conditions.append(pc.less(low, beyond))
            if least is not None and (high := self._statistic("max", column)) is not None:
                conditions.append(pc.greater_equal(high, least if column == ID.name else least - _TRUNCATED))
        if not conditions or not self.files.num_rows:
            return int(self.files.num_rows)
        return int(pc.sum(reduce(pc.and_, (pc.fill_null(each, True) for each in conditions))).as_py())

    def estimated_start(self, time: str, before: int | None, rows: int) -> int | None:
        """Return a time such that about `rows` rows lie between it and `before`, if each file has an even rate of rows.

        Times are in microseconds. None if there are fewer rows, or if the table's transaction log does not say.
        """
        low, high, stored = self._statistic("min", time), self._statistic("max", time), self.rows()
        if low is None or high is None or low.null_count or high.null_count or not stored or stored < rows:
            return None
        least, beyond, counts = low.to_numpy(), high.to_numpy() + _TRUNCATED + 1, self.files["num_records"].to_numpy()
        start, end = int(least.min()), int(beyond.max()) if before is None else before

        def rows_since(moment: int) -> int:
            overlap = np.maximum(np.minimum(beyond, end) - np.maximum(least, moment), 0)
            return int((counts * (overlap / (beyond - least))).sum())

        # A binary search for the first moment after which there are fewer than `rows` rows.
        lowest, highest = start, max(start, end)
        while lowest < highest:
            middle = (lowest + highest) // 2
            if rows_since(middle) >= rows:
                lowest = middle + 1
            else:
                highest = middle
        return lowest - 1 if lowest > start else None

    def rows(self) -> int | None:
        """Return the number of rows in all files; None if the table's transaction log does not say."""
        counts = self.files["num_records"]
        return None if counts.null_count else int(pc.sum(counts).as_py() or 0)

    def _statistic(self, which: str, column: str) -> pa.ChunkedArray | None:
        name = f"{which}.{column}"
        return self.files[name].cast(pa.int64()) if name in self.files.column_names else None


def _engine(table: DeltaTable, memory: int | None, options: dict[str, str] | None = None) -> QueryBuilder:
    engine = QueryBuilder(options).register("t", table)
    if memory is not None:
        for setting in (f"memory_limit = '{memory >> 10}K'", "max_temp_directory_size = '0K'"):
            pa.RecordBatchReader.from_stream(engine.execute(f"SET datafusion.runtime.{setting}")).read_all()
    return engine
