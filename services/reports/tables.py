"""The reports of a day: a Delta table each under `reports/` in the lake, a partition a day.

A day is one of event time, in UTC. Making its report again replaces its partition in one commit. A day whose report was
made has rows here even when it has no logs; docs/jobs.md describes the columns.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Schema, write_deltalake

from services.core.errors import ResultTooLarge
from services.core.result_size import MAX_RESULT_BYTES
from services.lake.table import Table, table_uri, within_limit
from services.runtime.settings import LakeSettings

Report = Mapping[str, Any]
"""One row of a report, by column."""


def _list_of(**fields: pa.DataType) -> pa.DataType:
    return pa.list_(pa.struct(fields))


_PERCENTILES = {"p50_ms": pa.float64(), "p95_ms": pa.float64(), "p99_ms": pa.float64()}
_VOLUME = {"rows": pa.int64(), "errors": pa.int64(), "error_rate": pa.float64()}
_POINT = {"as_of": pa.int64(), "computed_at": pa.timestamp("us", "UTC")}

SCHEMAS: Mapping[str, pa.Schema] = {
    "daily": pa.schema(
        {
            "day": pa.date32(),
            **_VOLUME,
            "levels": _list_of(level=pa.string(), rows=pa.int64()),
            "services": _list_of(service=pa.string(), **_VOLUME),
            "totals": _list_of(level=pa.string(), service=pa.string(), rows=pa.int64()),
            "hours": _list_of(hour=pa.int32(), **_VOLUME),
            "endpoints": _list_of(endpoint=pa.string(), requests=pa.int64(), **_PERCENTILES),
            **_POINT,
        }
    ),
    "services": pa.schema(
        {
            "day": pa.date32(),
            "service": pa.string(),
            **_VOLUME,
            **_PERCENTILES,
            "trend": _list_of(day=pa.date32(), **_VOLUME, p95_ms=pa.float64()),
            "messages": _list_of(message=pa.string(), rows=pa.int64()),
            "anomalies": _list_of(
                measure=pa.string(), value=pa.float64(), mean=pa.float64(), sigma=pa.float64(), threshold=pa.float64()
            ),
            **_POINT,
        }
    ),
}
"""By name of the report."""


class ReportTable:
    """One report's table. Thread-safe; methods raise StoreDown."""

    def __init__(self, settings: LakeSettings, name: str) -> None:
        self._schema = SCHEMAS[name]
        self._table = Table(table_uri(settings, "reports", name))

    def replace(self, day: date, rows: Sequence[Report]) -> None:
        """Make `rows` all there is of `day`."""
        data = pa.Table.from_pylist([{"day": day, **row} for row in rows], self._schema)
        table = self._table.latest()
        if table is None:
            table = within_limit(self._create)
        only = f"day = {_literal(day)}"
        within_limit(lambda: write_deltalake(table, data, mode="overwrite", predicate=only, partition_by=["day"]))

    def days(self) -> list[date]:
        """Return the days that have a report, the latest first."""
        table = self._table.latest()
        partitions = within_limit(table.partitions) if table else []
        return sorted((date.fromisoformat(str(each["day"])) for each in partitions), reverse=True)

    def of(self, day: date) -> list[dict[str, Any]]:
        """Return the rows of `day`; none when its report was never made. Raises ResultTooLarge."""
        engine = self._table.engine()
        if engine is None:
            return []
        query = f"SELECT * FROM t WHERE day = {_literal(day)}"  # noqa: S608 - a date
        rows: list[dict[str, Any]] = within_limit(
            lambda: _read(pa.RecordBatchReader.from_stream(engine.execute(query)))
        )
        return rows

    def _create(self) -> DeltaTable:
        return DeltaTable.create(self._table.uri, Schema.from_arrow(self._schema), mode="ignore", partition_by=["day"])


def _read(batches: pa.RecordBatchReader) -> list[dict[str, Any]]:
    rows, size = [], 0
    for batch in batches:
        size += batch.nbytes
        if size > MAX_RESULT_BYTES:
            raise ResultTooLarge(f"the report is larger than {MAX_RESULT_BYTES >> 20} MiB: read its table in the lake")
        rows += batch.to_pylist()
    return rows


def _literal(day: date) -> str:
    return f"DATE '{day.isoformat()}'"
