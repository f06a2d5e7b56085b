"""Queries of the lake in processes of their own: kept, killed when their time is over, and replaced."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import cast

import psutil
import pytest
from structlog.testing import capture_logs

from services.core.errors import UNEXPECTED, Invalid, LogpipeError, QueryTimeout, StoreDown
from services.core.ids import first_id
from services.core.queries import Filters, ListQuery, Query, StatsQuery
from services.core.rows import Row
from services.core.stopping import Stop
from services.datasets.logs import DATASET as LOGS
from services.lake.processes import PROCESSES, ProcessReader
from services.runtime.settings import LakeSettings
from tests import lake_tables
from tests.waiting import until

CREATED = 1_700_000_000_000_000
COUNT = StatsQuery(LOGS, scan=True)


@pytest.fixture
def settings(tmp_path: Path) -> LakeSettings:
    settings = LakeSettings(hdfs_url=tmp_path.as_uri())
    row: Row = (first_id(1), CREATED, CREATED, "INFO", "api", "", "hello", "{}")
    lake_tables.append(settings, LOGS, [row])
    return settings


@pytest.fixture
def reader(settings: LakeSettings) -> Iterator[ProcessReader]:
    with closing(ProcessReader(settings)) as reader:
        assert reader.execute(COUNT, 9).rows == [(1,)]
        yield reader


def pid(reader: ProcessReader) -> int:
    """Of the process that answers the next query."""
    process = reader._processes[-1]._process
    assert process is not None
    assert process.pid is not None
    return process.pid


def test_a_process_is_kept_for_the_next_query(reader: ProcessReader) -> None:
    first = pid(reader)
    assert reader.execute(COUNT, 9).rows == [(1,)]
    assert pid(reader) == first
    assert [worker._process is None for worker in reader._processes] == [True] * (PROCESSES - 1) + [False]


def test_a_query_over_its_time_ends_with_its_process(reader: ProcessReader) -> None:
    stuck = pid(reader)
    os.kill(stuck, signal.SIGSTOP)
    with pytest.raises(QueryTimeout, match=r"lake: no result within 0\.2 s"):
        reader.execute(COUNT, 9, 0.2)
    until(lambda: not psutil.pid_exists(stuck))
    assert reader.execute(COUNT, 9).rows == [(1,)]


def test_a_query_that_nobody_waits_for_ends_with_its_process(reader: ProcessReader) -> None:
    stuck, stop = pid(reader), Stop()
    os.kill(stuck, signal.SIGSTOP)
    with ThreadPoolExecutor() as threads:
        future = threads.submit(reader.execute, COUNT, 9, 60.0, stop)
        until(lambda: stop._end is not None)
        stop.end_query()
        with pytest.raises(LogpipeError):
            future.result(30)
    until(lambda: not psutil.pid_exists(stuck))
    assert reader.execute(COUNT, 9).rows == [(1,)]


def test_a_process_that_dies_fails_one_query(reader: ProcessReader) -> None:
    stuck, stop = pid(reader), Stop()
    os.kill(stuck, signal.SIGSTOP)
    with ThreadPoolExecutor() as threads:
        future = threads.submit(reader.execute, COUNT, 9, 60.0, stop)
        until(lambda: stop._end is not None)
        os.kill(stuck, signal.SIGKILL)
        with pytest.raises(StoreDown, match="lake: the process of the query ended with -9"):
            future.result(30)
    assert reader.execute(COUNT, 9).rows == [(1,)]


def test_errors_come_out_of_the_process_as_they_are(reader: ProcessReader, settings: LakeSettings) -> None:
    with pytest.raises(Invalid, match="NUL"):
        reader.execute(ListQuery(LOGS, Filters(text="\x00")), 9)
    with (
        closing(ProcessReader(LakeSettings(hdfs_url="hdfs://127.0.0.1:1"))) as unreachable,
        pytest.raises(StoreDown) as raised,
    ):
        unreachable.execute(COUNT, 9)
    assert raised.value.store == "lake"


def test_the_traceback_of_a_bug_is_logged_and_not_raised(reader: ProcessReader) -> None:
    with capture_logs() as logged, pytest.raises(LogpipeError) as raised:
        reader.execute(cast("Query", None), 9)
    assert str(raised.value) == UNEXPECTED
    assert [entry["event"] for entry in logged] == ["unexpected error"]
    assert "Traceback" in logged[0]["exception"]
    assert reader.execute(COUNT, 9).rows == [(1,)]


def test_closing_ends_the_processes(settings: LakeSettings) -> None:
    with closing(ProcessReader(settings)) as reader:
        reader.execute(COUNT, 9)
        process = pid(reader)
    until(lambda: not psutil.pid_exists(process))
