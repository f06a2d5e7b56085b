"""One version of a table: an engine to ask it with, and what its log says of each file, by which files are left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder

from services.core.dataset import ID

Bounds = Sequence[tuple[str, int | None, int | None]]
"""All of (column, least, first beyond) of the values asked for; times in microseconds, None where there is no bound."""

_TRUNCATED = 999  # the greatest time of a file is logged in whole milliseconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`engine` knows the table as `t`. `files`: a row for each, the least and greatest values as min.* and max.*."""

    uri: str
    version: int
    engine: QueryBuilder
    columns: frozenset[str]
    files: pa.Table

    @classmethod
    def of(cls, table: DeltaTable) -> "Snapshot":
        """Of the handle as it stands; later versions do not change it."""
        return cls(
            uri=table.table_uri,
            version=table.version(),
            engine=QueryBuilder().register("t", table),
            columns=frozenset(field.name for field in table.schema().fields),
            files=pa.RecordBatchReader.from_stream(table.get_add_actions(flatten=True)).read_all(),
        )

    def files_within(self, bounds: Bounds) -> int:
        """How many files may hold rows within all `bounds`: those that the engine opens."""
        conditions = []
        for column, least, beyond in bounds:
            if beyond is not None and (low := self._statistic("min", column)) is not None:
                conditions.append(pc.less(low, beyond))
            if least is not None and (high := self._statistic("max", column)) is not None:
                conditions.append(pc.greater_equal(high, least if column == ID.name else least - _TRUNCATED))
        if not conditions or not self.files.num_rows:
            return int(self.files.num_rows)
        return int(pc.sum(reduce(pc.and_, (pc.fill_null(each, True) for each in conditions))).as_py())

    def rows(self) -> int | None:
        """Of all files together; None when the log does not say."""
        counts = self.files["num_records"]
        return None if counts.null_count else int(pc.sum(counts).as_py() or 0)

    def _statistic(self, which: str, column: str) -> pa.ChunkedArray | None:
        name = f"{which}.{column}"
        return self.files[name].cast(pa.int64()) if name in self.files.column_names else None
