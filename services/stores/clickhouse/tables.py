"""The tables: one per dataset, partitioned by the day of acceptance, sorted by the dataset's time."""

from collections.abc import Collection
from contextlib import closing
from typing import Any

from clickhouse_connect.driver.client import Client

from services.core.dataset import CREATED_AT, ID, MAX_CATEGORY_CHARACTERS, Column, Dataset
from services.core.errors import NeedsOperator
from services.core.ids import first_id
from services.core.instants import DAY, to_datetime
from services.runtime.settings import ClickHouseSettings
from services.stores.clickhouse import rollups, views
from services.stores.clickhouse.client import connect, translated
from services.stores.clickhouse.names import quoted, stored_name

_REMEMBERED_TOKENS = 100_000  # the tokens of the newest inserts, which the table keeps: 28 hours at one a second
_DROP_TIMEOUT = 60  # seconds

_TYPES = {
    "category": "LowCardinality(String)",
    "text": "String",
    "timestamp": "DateTime64(6, 'UTC')",
    "number": "Nullable(Float64)",
    "json": "String",
    "uuid": "UUID",
}
_STORAGE = {
    "category": "",
    "text": "CODEC(ZSTD(1))",
    "timestamp": "CODEC(Delta, ZSTD(1))",
    "number": "CODEC(ZSTD(1))",
    "json": "DEFAULT '{}' CODEC(ZSTD(1))",
    "uuid": "",
}
_GRANULE_ROWS = 2048  # the fewest rows that are read of a ClickHouse part, even for the newest 100 rows (ADR 0011)
_INDEXED_GRANULES = 4
# An acknowledged insert is on the disk, because the position that is saved after the insert survives a loss of power.
_DURABLE = "fsync_after_insert = 1, fsync_part_directory = 1"
# A search skips the granules that lack a sequence of four bytes of the text. Finer indexes cost more (ADR 0007).
_SEARCH_INDEX = f"TYPE ngrambf_v1(4, 32768, 2, 0) GRANULARITY {_INDEXED_GRANULES}"


def prepare(client: Client, dataset: Dataset) -> None:
    """Create the dataset's table and view, or add what they lack, and the rollup. Raises NeedsOperator or StoreDown."""
    with translated():
        client.command(create_table(dataset))
        if _DURABLE not in _engine(client, dataset):  # the table was made by an earlier release
            client.command(f"ALTER TABLE {quoted(dataset.name)} MODIFY SETTING {_DURABLE}")
        found = _column_types(client, dataset)
        for column in dataset.columns:
            wanted = _TYPES[column.kind]
            actual = found.get(stored_name(column).strip("`"))
            if actual is None:
                for definition in _definitions(column):
                    client.command(f"ALTER TABLE {quoted(dataset.name)} ADD COLUMN IF NOT EXISTS {definition}")
            elif actual != wanted:
                raise NeedsOperator(
                    f"clickhouse: table {dataset.name}: column {column.name} is {actual}, its description says {wanted}"
                )
        for constraint in _length_checks(dataset):  # earlier releases had none; ClickHouse checks new rows only
            client.command(f"ALTER TABLE {quoted(dataset.name)} ADD CONSTRAINT IF NOT EXISTS {constraint}")
        if dataset.search:
            index = f"search {stored_name(dataset.by_name[dataset.search])} {_SEARCH_INDEX}"
            client.command(f"ALTER TABLE {quoted(dataset.name)} ADD INDEX IF NOT EXISTS {index}")
        rollups.prepare(client, dataset)
        views.prepare(client, dataset)


def table_id(client: Client, dataset: Dataset) -> str:
    """Return the table's UUID, '' if there is no table. Raises StoreDown.

    The embedded engine's default database does not show the UUID, but names the table's folder by it.
    """
    query = """SELECT if(uuid = defaultValueOfTypeName('UUID'),
                         extract(data_paths[1], '/([0-9a-f-]{36})/$'), toString(uuid))
               FROM system.tables WHERE database = currentDatabase() AND name = {table:String}"""
    with translated():
        rows: Any = client.query(query, {"table": dataset.name}).result_rows
    return str(rows[0][0]) if rows else ""


def create_table(dataset: Dataset) -> str:
    columns = [f"{quoted(ID.name)} Int64 CODEC(Delta, ZSTD(1))", *_definitions(CREATED_AT)]
    for column in dataset.columns:
        columns += _definitions(column)
    constraints = [f"has_id CHECK id >= {first_id(1)}", *_length_checks(dataset)]
    # The newest rows are at the end of the sort order. Batches arrive roughly in the order of time, so ids prune, too.
    return f"""
        CREATE TABLE IF NOT EXISTS {quoted(dataset.name)} (
            {", ".join(columns)},
            INDEX ids id TYPE minmax GRANULARITY {_INDEXED_GRANULES},
            {", ".join(f"CONSTRAINT {constraint}" for constraint in constraints)}
        )
        ENGINE = MergeTree
        PARTITION BY toYYYYMMDD({stored_name(CREATED_AT)})
        ORDER BY ({stored_name(dataset.by_name[dataset.time])}, id)
        SETTINGS index_granularity = {_GRANULE_ROWS}, non_replicated_deduplication_window = {_REMEMBERED_TOKENS},
                 {_DURABLE}"""


def _length_checks(dataset: Dataset) -> list[str]:
    return [
        f"{quoted(f'{column.name}_length')} CHECK lengthUTF8({stored_name(column)}) <= {MAX_CATEGORY_CHARACTERS}"
        for column in dataset.length_limited
    ]


def _definitions(column: Column) -> list[str]:
    kind, storage = _TYPES[column.kind], _STORAGE[column.kind]
    if column.kind != "timestamp":
        return [f"{stored_name(column)} {kind} {storage}"]
    name = quoted(column.name)
    return [
        f"{name} Int64 EPHEMERAL",
        f"{stored_name(column)} {kind} DEFAULT fromUnixTimestamp64Micro({name}, 'UTC') {storage}",
    ]


def drop_days(dataset: Dataset, before: int, keep: Collection[int] = ()) -> int:
    """Drop the partitions of all days below `before`, except those in `keep`, and return how many. Raises StoreDown.

    Days are counted from 1970-01-01 UTC.
    """
    query = """SELECT DISTINCT partition_id FROM system.parts
               WHERE active AND database = currentDatabase() AND table = {table:String}
                 AND toUInt32(partition_id) < toYYYYMMDD(toDate({before:UInt32}))"""
    kept = {f"{to_datetime(day * DAY):%Y%m%d}" for day in keep}
    client = connect(ClickHouseSettings().clickhouse_url.get_secret_value(), _DROP_TIMEOUT)
    with translated(), closing(client):
        old: Any = client.query(query, {"table": dataset.name, "before": before}).result_rows
        dropped = [partition for (partition,) in old if partition not in kept]
        for partition in dropped:
            client.command(f"ALTER TABLE {quoted(dataset.name)} DROP PARTITION ID '{int(partition)}'")
    return len(dropped)


def _engine(client: Client, dataset: Dataset) -> str:
    """Return the table's engine with its settings, in ClickHouse's own spelling."""
    query = "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = {table:String}"
    rows: Any = client.query(query, {"table": dataset.name}).result_rows
    return str(rows[0][0])


def _column_types(client: Client, dataset: Dataset) -> dict[str, str]:
    query = "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String}"
    rows: Any = client.query(query, {"table": dataset.name}).result_rows
    return dict(rows)
