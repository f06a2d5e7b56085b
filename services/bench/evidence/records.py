"""The records of a run. Durations are microseconds in tables, seconds or milliseconds where a name says so."""

from datetime import datetime
from typing import Any

import msgspec

from services.bench.plan.cells import Cell

FORMAT = 1

Table = dict[str, list[Any]]
"""Columns of equal length."""

Tables = dict[str, Table]
"""The samples of a trial:

reads    due, response, store (time), method, digest, problem; in the order of the replies
files    of these reads, in the same order: files, files_total that the store reports as read; 0 where it reports none
writes   due, response, rows, bytes, outcome (acked, refused, indeterminate), batch (0 if not acked), problem
polls    store, at, as_of: the batch up to which a store's query read, and when
signals  at, name, value: of Prometheus

due, at: microseconds since the trial's first intended request. response: from the intended time to the reply.
"""


class Pace(msgspec.Struct, frozen=True):
    """How the driver kept its schedule. `late_ms`: the most by which a request was sent after its intended time."""

    scheduled: int
    sent: int
    dropped: int
    late_ms: float


class Trial(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measurement of one cell. `started`: ISO 8601. `seconds`: from the first intended request to the last.

    `stored`: rows of this trial that each store returned afterwards. `drained`: seconds from the last reply until a
    store had them, None if it did not within the limit. `cpu`, `disk`: CPU-seconds used by each component, and bytes
    by which it grew. `values`: of a control arm. `fault_at`: when a component was killed, as `due`.
    """

    number: int
    cell: Cell
    repeat: int
    started: str
    seconds: float
    pace: Pace
    histograms: dict[str, str] = {}
    stored: dict[str, int] = {}
    drained: dict[str, float | None] = {}
    cpu: dict[str, float] = {}
    disk: dict[str, int] = {}
    values: dict[str, float] = {}
    fault_at: int | None = None


def made(number: int, cell: Cell, repeat: int, started: datetime, seconds: float, pace: Pace) -> Trial:
    return Trial(number, cell, repeat, started.isoformat(timespec="milliseconds"), round(seconds, 6), pace)


class About(msgspec.Struct, frozen=True):
    """`run`: the name of the run, which the rows that it writes carry in their column host."""

    run: str
    plan: str
    started: str
    versions: dict[str, str]
    machine: dict[str, str]
    target: dict[str, str]
    settings: dict[str, str]
    format: int = FORMAT


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the journal. `event`: started, resumed, trial, note, differs, interrupted, over-budget, failed,
    finished."""

    at: str
    event: str
    text: str = ""
    cell: str = ""
    repeat: int = 0
    number: int = 0
    hashes: dict[str, str] = {}
