"""From a dataset's description to its tables in the lake, and to what Spark reads from a line."""

import pyarrow as pa
from deltalake import Schema

from services.core.dataset import CREATED_AT, ID, Dataset

INDEXED_COLUMNS = 3  # id, created_at and the dataset's time: a table's first columns have statistics

_SPARK_TYPES = {"timestamp": "BIGINT", "number": "DOUBLE"}
_ARROW_TYPES = {"timestamp": pa.timestamp("us", "UTC"), "number": pa.float64()}


def table_schema(dataset: Dataset) -> Schema:
    time = dataset.by_name[dataset.time]
    columns = [CREATED_AT, time, *(column for column in dataset.columns if column is not time)]
    fields = [(column.name, _ARROW_TYPES.get(column.kind, pa.string())) for column in columns]
    return Schema.from_arrow(pa.schema([(ID.name, pa.int64()), *fields, ("day", pa.date32())]))


def rejects_schema() -> Schema:
    """`line` is 0-based; where a message is refused as a whole it is null and `rows` says how many lines it had."""
    return Schema.from_arrow(
        pa.schema(
            [
                ("topic", pa.string()),
                ("partition", pa.int32()),
                ("offset", pa.int64()),
                ("line", pa.int32()),
                ("batch_id", pa.int64()),
                ("id", pa.int64()),
                ("rows", pa.int32()),
                ("reason", pa.string()),
                ("value", pa.binary()),
            ]
        )
    )


def line_schema(dataset: Dataset) -> str:
    """Of one line of a Kafka value, as from_json takes it: times are integers there."""
    types = [f"`{c.name}` {_SPARK_TYPES.get(c.kind, 'STRING')}" for c in (CREATED_AT, *dataset.columns)]
    return ", ".join([f"{ID.name} BIGINT", *types])
