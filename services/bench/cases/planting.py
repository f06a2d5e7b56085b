"""A history planted into a stopped pipeline, as if it had run for a year: batches, day partitions, parts, log files.

The batches without rows are in the ledger alone. One batch a day has rows, the same in every store, so that `verify`
finds nothing wrong. What is planted lies below the watermarks of all stores, as a year of loaded batches does.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from deltalake import DeltaTable, write_deltalake
from hdfs_native import Client, WriteOptions
from psycopg.sql import SQL, Identifier

from services.core import kafka_value
from services.core.dataset import Dataset
from services.core.ids import batch_of, first_id
from services.core.instants import DAY
from services.core.ports import Block
from services.core.rows import Row, RowCodec, Rows, checksum
from services.lake.lines import LineReader
from services.lake.log import TableLog
from services.lake.schema import writer_properties
from services.lake.table import Table, table_uri
from services.postgres.connection import Connection, connect
from services.runtime.settings import LakeSettings
from services.stores import postgres
from services.stores.clickhouse.writer import ClickHouseWriter

DAY_ROWS = 200
_CHUNK = 1_000_000  # batches of one statement
_THREADS = 8
_TWO_HOURS = 7_200_000  # milliseconds: longer than commits are kept

_BATCHES = """
    INSERT INTO batches (batch_id, slot, dataset, rows, checksum, xid, created_at, published_at, parts)
    SELECT n, 0, %(dataset)s, 0, 0, pg_current_xact_id(), %(start)s + (n * %(span)s::numeric / %(count)s)::bigint,
           now(), '[[0, 0]]' FROM generate_series(%(first)s::bigint, %(last)s) AS n"""


@dataclass(frozen=True, slots=True)
class History:
    """`batches` accepted evenly over the `days` before `today` (days since 1970-01-01 UTC)."""

    batches: int
    days: int
    log_files: int
    today: int

    @property
    def first_day(self) -> int:
        return self.today - self.days


def reserve_ids(url: str, batches: int) -> None:
    """Batches that are accepted from now on have ids above those of the history."""
    with connect(url) as connection:
        connection.execute("SELECT setval('batch_ids', %s)", (batches + 1000,))


def plant_batches(url: str, dataset: Dataset, history: History) -> None:
    """Without indexes, which are made again at the end: many times as fast."""
    values = {
        "dataset": dataset.name,
        "start": history.first_day * DAY,
        "span": history.days * DAY,
        "count": history.batches + 1,
    }
    with connect(url) as connection:
        indexes = connection.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'batches' AND indexname <> 'batches_pkey'"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(SQL("DROP INDEX {}").format(Identifier(name)))
        connection.execute("ALTER TABLE batches DROP CONSTRAINT batches_pkey")
        for first in range(1, history.batches + 1, _CHUNK):
            last = min(first + _CHUNK - 1, history.batches)
            connection.execute(_BATCHES, {**values, "first": first, "last": last})
        connection.execute("SET maintenance_work_mem = '1GB'")
        connection.execute("ALTER TABLE batches ADD PRIMARY KEY (batch_id)")
        for _, definition in indexes:
            connection.execute(definition)
        connection.execute("VACUUM (ANALYZE) batches")


def plant_days(postgres_url: str, clickhouse_url: str, lake: LakeSettings, dataset: Dataset, history: History) -> None:
    """A partition of PostgreSQL, a part of ClickHouse and a file of the lake for each day, with the same rows."""
    codec, lines, writer = RowCodec(dataset), LineReader(dataset), ClickHouseWriter(clickhouse_url)
    writer.prepare(dataset)
    handle = DeltaTable(table_uri(lake, dataset.name))
    with connect(postgres_url) as connection:
        postgres.ensure_partitions(connection, dataset, history.first_day, history.days)
        for number in range(history.days):
            day, batch_id = history.first_day + number, number * history.batches // history.days + 1
            rows = list(_rows(dataset, batch_id, day))
            encoded = codec.encode(rows)
            block = Block(dataset, "planted", 0, batch_id, batch_id, day, len(rows), kafka_value.join(encoded))
            _insert(connection, dataset, rows, day)
            connection.execute(
                "UPDATE batches SET rows = %s, checksum = %s, created_at = %s WHERE batch_id = %s",
                (len(rows), checksum(encoded), rows[0][1], batch_id),
            )
            writer.write([block])
            write_deltalake(handle, lines.table(block), mode="append", writer_properties=writer_properties(dataset))
        connection.execute("ANALYZE")


def plant_log(lake: LakeSettings, dataset: Dataset, log_files: int) -> None:
    """Log files that a clean-up would delete: the last checkpoint says that the table is at that version."""
    uri = table_uri(lake, dataset.name)
    folder = f"{urlsplit(uri).path}/_delta_log"
    TableLog(Table(uri)).repeat_position()
    handle = DeltaTable(uri)
    handle.create_checkpoint()
    version, last = handle.version(), handle.version() + log_files
    hdfs, old = Client(lake.hdfs_url), int(time.time() * 1000) - _TWO_HOURS
    with hdfs.read(f"{folder}/{version:020d}.json") as file:
        newest: bytes = file.read()
    hdfs.rename(f"{folder}/{version:020d}.checkpoint.parquet", f"{folder}/{last:020d}.checkpoint.parquet")

    def put(number: int) -> None:
        name = f"{folder}/{number:020d}.json"
        if number > version:
            with hdfs.create(name, WriteOptions(overwrite=True)) as file:
                if number == last:
                    file.write(newest)
        hdfs.set_times(name, old, old)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(put, range(last + 1)))
    with hdfs.create(f"{folder}/_last_checkpoint", WriteOptions(overwrite=True)) as file:
        file.write(b'{"version":%d,"size":1}' % last)


def _rows(dataset: Dataset, batch_id: int, day: int) -> Iterator[Row]:
    for number in range(DAY_ROWS):
        accepted = day * DAY + DAY // 2
        time_of_row = accepted - DAY_ROWS + number
        values = (time_of_row, "INFO", "api-gateway", "", f"row {number}", "{}")
        yield (first_id(batch_id) + number, accepted, *values)


def _insert(connection: Connection, dataset: Dataset, rows: list[Row], day: int) -> None:
    with connection.cursor().copy(postgres.copy_statement(dataset, day)) as copy:
        copy.set_types(postgres.copy_types(dataset))
        _, created, *columns = zip(*rows, strict=True)
        batch = Rows(len(rows), columns)
        for values in postgres.copy_rows(dataset, batch, batch_of(rows[0][0]), created[0]):
            copy.write_row(values)
