"""What Spark reads from a line of a dataset, and where it puts those that are not sound."""

import pyarrow as pa
from deltalake import Schema

from services.core.dataset import CREATED_AT, ID, Dataset

_SPARK_TYPES = {"timestamp": "BIGINT", "number": "DOUBLE"}


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
