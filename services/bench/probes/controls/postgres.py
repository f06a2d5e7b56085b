"""Control arms of PostgreSQL: COPY, single inserts and executemany into a table like that of logs."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from services.bench.probes.controls.rows import wire_lines
from services.bench.target.urls import Target
from services.postgres.connection import Connection, connect, translated

_ROWS = 20_000
_SINGLE_ROWS = 1000  # each is a transaction with an fsync of its own
_INSERT = "INSERT INTO bench_control VALUES (%s, %s, %s, %s, %s, %s)"


def copy(target: Target) -> Mapping[str, float]:
    rows = _rows(_ROWS)
    with _table(target) as connection:
        start = time.perf_counter()
        with connection.cursor() as cursor, cursor.copy("COPY bench_control FROM STDIN") as copying:
            for row in rows:
                copying.write_row(row)
        return {"rows/s": _ROWS / (time.perf_counter() - start)}


def row_insert(target: Target) -> Mapping[str, float]:
    rows = _rows(_SINGLE_ROWS)
    with _table(target) as connection:
        start = time.perf_counter()
        for row in rows:
            connection.execute(_INSERT, row)
        return {"rows/s": _SINGLE_ROWS / (time.perf_counter() - start)}


def executemany(target: Target) -> Mapping[str, float]:
    rows = _rows(_ROWS)
    with _table(target) as connection:
        start = time.perf_counter()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(_INSERT, rows)
        return {"rows/s": _ROWS / (time.perf_counter() - start)}


def _rows(count: int) -> Sequence[tuple[str, ...]]:
    found = []
    for line in wire_lines(count):
        row = json.loads(line)
        fields = (row[name] for name in ("timestamp", "level", "service", "host", "message"))
        found.append((*fields, json.dumps(row["metadata"])))
    return found


@contextmanager
def _table(target: Target) -> Iterator[Connection]:
    """Make a table with the columns and the index of logs, and drop it afterwards. Raises NeedsOperator, StoreDown."""
    with translated(), connect(target.postgres_url()) as connection:
        connection.execute("DROP TABLE IF EXISTS bench_control")
        connection.execute(
            "CREATE TABLE bench_control (timestamp timestamptz NOT NULL, level text, service text, host text,"
            " message text, metadata json)"
        )
        connection.execute("CREATE INDEX ON bench_control (timestamp)")
        try:
            yield connection
        finally:
            connection.execute("DROP TABLE bench_control")
