"""The fields that Spark reads from a line of a dataset, and the columns of the table of rejects."""

import pyarrow as pa
from deltalake import Schema

from services.core.dataset import Dataset
from services.core.line_fields import line_fields

_TYPES = {"integer": "BIGINT", "number": "DOUBLE", "text": "STRING"}


def rejects_schema() -> Schema:
    """Return the columns of the table of rejects: the fields of a dead letter (`core.dead_letter`) that differ.

    The table is of one store and one dataset, so there is no column for either. `value` is the whole line or message,
    as bytes, so there is no `value_bytes`. ADR 0003 says why rejects are not sent to the topic of dead letters.
    """
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
    """Return the schema of one line of a Kafka value for Spark's from_json. Times are integers in a line."""
    return ", ".join(f"`{field.name}` {_TYPES[field.type]}" for field in line_fields(dataset))
