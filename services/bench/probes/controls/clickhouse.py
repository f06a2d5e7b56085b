"""Control arm of ClickHouse: one INSERT of rows as NDJSON, over HTTP, into a table like that of logs."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

from services.bench.probes.controls import rows
from services.bench.target.urls import Target
from services.core.errors import StoreDown
from services.stores.clickhouse import STORE, tables
from services.stores.clickhouse.client import connect, translated
from services.stores.clickhouse.names import quoted
from services.stores.clickhouse.statements import insert_prefix

TABLE = "bench_control"

_ROWS = 200_000
_TIMEOUT = 300  # seconds


def insert(target: Target) -> Mapping[str, float]:
    """The table has the columns, the order key and the durability of logs, and no search index and no rollups."""
    dataset = replace(rows.dataset(), name=TABLE)
    file = rows.stored_lines(_ROWS)
    columns = ", ".join(map(quoted, dataset.column_names))
    drop = f"DROP TABLE IF EXISTS {quoted(TABLE)} SYNC"
    client = connect(target.url("LOGPIPE_CLICKHOUSE_URL"), _TIMEOUT)
    with closing(client), translated():
        client.command(drop)
        client.command(tables.create_table(dataset))
        try:
            start = time.perf_counter()
            client.command(f"{insert_prefix(dataset)}{columns}) FORMAT JSONEachRow", data=file)
            seconds = time.perf_counter() - start
            stored = int(str(client.command(f"SELECT count() FROM {quoted(TABLE)}")))  # noqa: S608
        finally:
            client.command(drop)
    if stored != _ROWS:
        raise StoreDown(STORE.name, f"{stored:,} of {_ROWS:,} rows were stored")
    return {"rows/s": _ROWS / seconds}
