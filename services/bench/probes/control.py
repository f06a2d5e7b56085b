"""Control arms: limits of the machine and of a component, measured without the pipeline.

A figure of the pipeline means something as a ratio to one of these, measured in the same run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec

from services import datasets
from services.bench.evidence.records import Pace, Tables, Trial, made
from services.bench.plan.cells import ControlCell
from services.bench.plan.schema import Control
from services.bench.target.urls import Target
from services.generator.synthesis import Synthesizer
from services.postgres.connection import Connection, connect, translated

_BURN = (
    "import time\nend, n = time.perf_counter() + {seconds}, 0\nwhile time.perf_counter() < end:\n    n += 1\nprint(n)"
)
_BURN_SECONDS = 1.0
_BLOCK = 1 << 20
_BLOCKS = 64
_SYNCS = 50
_ROWS = 20_000
_SINGLE_ROWS = 1000  # each is a transaction with an fsync of its own


def measure(target: Target, cell: ControlCell, repeat: int, number: int) -> tuple[Trial, Tables]:
    """Raises NeedsOperator or StoreDown if the arm needs something that cannot be reached."""
    started, start = datetime.now(UTC), time.monotonic()
    values = _ARMS[cell.arm](target)
    trial = made(number, cell, repeat, started, time.monotonic() - start, Pace(0, 0, 0, 0))
    return msgspec.structs.replace(trial, values=values), {}


def _cores(_target: Target) -> Mapping[str, float]:
    one = _burn(1)
    return {"work of two burners, in times of one": _burn(2) / one}


def _burn(burners: int) -> float:
    """Return the loops of so many processes that compute side by side."""
    command = [sys.executable, "-c", _BURN.format(seconds=_BURN_SECONDS)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(burners)]
    return sum(float(each.communicate()[0]) for each in running)


def _disk(_target: Target) -> Mapping[str, float]:
    with tempfile.TemporaryFile(buffering=0) as file:
        block = os.urandom(_BLOCK)
        start = time.perf_counter()
        for _ in range(_BLOCKS):
            file.write(block)
        os.fsync(file.fileno())
        written = _BLOCKS * _BLOCK / (time.perf_counter() - start) / 1e6
        start = time.perf_counter()
        for _ in range(_SYNCS):
            file.write(block[:8192])
            os.fsync(file.fileno())
        return {"MB/s written": written, "fsyncs/s": _SYNCS / (time.perf_counter() - start)}


def _copy(target: Target) -> Mapping[str, float]:
    rows = _rows(_ROWS)
    with _table(target) as connection:
        start = time.perf_counter()
        with connection.cursor() as cursor, cursor.copy("COPY bench_control FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        return {"rows/s": _ROWS / (time.perf_counter() - start)}


def _row_insert(target: Target) -> Mapping[str, float]:
    rows = _rows(_SINGLE_ROWS)
    with _table(target) as connection:
        start = time.perf_counter()
        for row in rows:
            connection.execute(_INSERT, row)
        return {"rows/s": _SINGLE_ROWS / (time.perf_counter() - start)}


def _executemany(target: Target) -> Mapping[str, float]:
    rows = _rows(_ROWS)
    with _table(target) as connection:
        start = time.perf_counter()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(_INSERT, rows)
        return {"rows/s": _ROWS / (time.perf_counter() - start)}


_INSERT = "INSERT INTO bench_control VALUES (%s, %s, %s, %s, %s, %s)"
_ARMS: Mapping[Control, Callable[[Target], Mapping[str, float]]] = {
    "cores": _cores,
    "disk": _disk,
    "copy": _copy,
    "row-insert": _row_insert,
    "executemany": _executemany,
}


def _rows(count: int) -> Sequence[tuple[str, ...]]:
    lines = Synthesizer(datasets.find("logs"), seed=1, start_us=time.time_ns() // 1000, step_us=100).lines(0, count)
    found = []
    for line in lines:
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
