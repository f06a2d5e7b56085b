"""What Spark reads from a line of a dataset, and the table that takes the lines that are not sound."""

import pyarrow as pa
from deltalake import Schema

from services.core.dataset import Dataset
from services.core.line_fields import line_fields

_TYPES = {"integer": "BIGINT", "number": "DOUBLE", "text": "STRING"}


def rejects_schema() -> Schema:
    """The columns of the table of rejects. `line` counts from 0; it is null for a whole message, of `rows` lines."""
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
    """The schema of one line of a Kafka value, as Spark's from_json takes it. Times are integers in a line."""
    return ", ".join(f"`{field.name}` {_TYPES[field.type]}" for field in line_fields(dataset))
