"""Puts rows into tables of the lake as its writer would, without Spark; `hdfs_url` may be file:// and a folder."""

from collections.abc import Sequence

import pyarrow as pa
from deltalake import CommitProperties, write_deltalake

from services.core.dataset import CREATED_AT, Dataset
from services.core.ports import Block
from services.core.rows import Row
from services.lake.schema import table_schema
from services.lake.table import LakePosition, table_uri
from services.runtime.settings import LakeSettings
from spark_jobs.tables import Tables

DAY = 86_400_000_000


def append(settings: LakeSettings, dataset: Dataset, rows: Sequence[Row], position: LakePosition | None = None) -> None:
    Tables(settings, dataset).prepare()
    names = [*dataset.column_names, "day"]
    days = (row[dataset.column_names.index(CREATED_AT.name)] // DAY for row in rows)
    columns = zip(*((*row, day) for row, day in zip(rows, days, strict=True)), strict=True)
    schema = pa.schema(table_schema(dataset))
    integers = {"date32": pa.int32(), "timestamp": pa.int64()}
    arrays = []
    for name, values in zip(names, columns, strict=True):
        wanted = schema.field(name).type
        taken = next((t for prefix, t in integers.items() if str(wanted).startswith(prefix)), wanted)
        arrays.append(pa.array(values, taken).cast(wanted))
    metadata = {"userMetadata": position.encode()} if position else {}
    write_deltalake(
        table_uri(settings, dataset.name),
        pa.Table.from_arrays(arrays, names).select(schema.names),
        mode="append",
        commit_properties=CommitProperties(custom_metadata=metadata),
    )


def block(dataset: Dataset, lines: bytes, offset: int, day: int) -> Block:
    """One message of partition 0."""
    return Block(dataset, "t", 0, offset, offset, day, lines.count(b"\n"), lines)
