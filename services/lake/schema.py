"""From a dataset's description to its table in the lake: the same whichever engine makes it."""

import pyarrow as pa
from deltalake import ColumnProperties, DeltaTable, Schema, WriterProperties

from services.core.dataset import CREATED_AT, ID, Dataset
from services.core.errors import NeedsOperator
from services.lake.table import Table, within_limit

DAY = "day"
"""The column a dataset's table is partitioned by: the day of acceptance, UTC."""

_INDEXED_COLUMNS = 3  # id, created_at and the dataset's time: a table's first columns have statistics
_CONFIGURATION: dict[str, str] = {
    "delta.dataSkippingNumIndexedCols": str(_INDEXED_COLUMNS),
    # `logpipe maintain` writes checkpoints and cleans up the log. A writer's commit does neither, except that one in a
    # thousand writes a checkpoint: without one, a table without maintenance could soon not be opened any more.
    "delta.checkpointInterval": "1000",
    "delta.enableExpiredLogCleanup": "false",
    # Longer than any query needs the version that it began with.
    "delta.logRetentionDuration": "interval 1 hour",
    # Every checkpoint lists the files that were replaced in this time. The longest grace period of `maintain`.
    "delta.deletedFileRetentionDuration": "interval 24 hours",
}
_DIFFERENCES = ColumnProperties(dictionary_enabled=False, encoding="DELTA_BINARY_PACKED")
_ARROW_TYPES = {"timestamp": pa.timestamp("us", "UTC"), "number": pa.float64()}


def table_schema(dataset: Dataset) -> Schema:
    time = dataset.by_name[dataset.time]
    columns = [CREATED_AT, time, *(column for column in dataset.columns if column is not time)]
    fields = [(column.name, _ARROW_TYPES.get(column.kind, pa.string())) for column in columns]
    return Schema.from_arrow(pa.schema([(ID.name, pa.int64()), *fields, (DAY, pa.date32())]))


def writer_properties(dataset: Dataset, row_group_rows: int | None = None) -> WriterProperties:
    """Return how files are written: ids and times as differences, which are read much faster than dictionaries.

    `row_group_rows`: rows of one row group of Parquet, which a reader fetches or skips; None: one group in each file.
    """
    rising = [ID.name, *(column.name for column in (CREATED_AT, *dataset.columns) if column.kind == "timestamp")]
    return WriterProperties(
        compression="ZSTD",  # at level 1 half of snappy's size at its price
        compression_level=1,
        max_row_group_size=row_group_rows,
        column_properties=dict.fromkeys(rising, _DIFFERENCES),
    )


def prepare(table: Table, schema: Schema, partition_by: list[str]) -> DeltaTable:
    """Create the table, or add the columns and set the properties that it lacks.

    Raises StoreDown, and NeedsOperator when a column is of another type.
    """
    handle = table.latest()
    if handle is None:
        handle = within_limit(
            lambda: DeltaTable.create(
                table.uri, schema, mode="ignore", partition_by=partition_by, configuration={**_CONFIGURATION}
            )
        )
    found = {field.name: field for field in handle.schema().fields}
    missing = [field for field in schema.fields if field.name not in found]
    for field in schema.fields:
        if field.name in found and found[field.name].type != field.type:
            raise NeedsOperator(
                f"lake: {table.uri}: column {field.name} is {found[field.name].type}, its description says {field.type}"
            )
    if missing:
        within_limit(lambda: handle.alter.add_columns(missing))
    if not _CONFIGURATION.items() <= handle.metadata().configuration.items():
        within_limit(lambda: handle.alter.set_table_properties(_CONFIGURATION))
    return handle
