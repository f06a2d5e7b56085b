"""Each limit of docs/limits.md has the value that the page says, and is tried at the value and one beyond it."""

import asyncio
import gzip
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import TypeAdapter, ValidationError

from services.acceptance.disk import DiskFloor, LocalDisk
from services.core import dead_letter, result_size, row_chunks
from services.core.dead_letter import MAX_REASON_CHARACTERS, DeadLetter
from services.core.errors import LogpipeError
from services.core.instants import of_row
from services.core.kafka_value import MAX_VALUE_BYTES
from services.core.rows import RowCodec, Rows
from services.datasets.logs import DATASET
from services.ingest_api import bodies, endpoints
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.query_api import parameters
from services.query_api.query_threads import QueryThreads
from services.runtime.problems import MAX_DETAIL_CHARACTERS, problem
from services.runtime.request_bodies import InFlight
from tests.unit.test_docs import all_settings, table

TESTS = Path(__file__).parents[1]
CODEC = RowCodec(DATASET)
LOG = b'{"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "%s", "metadata": %s}'
GIB = 1 << 30


def add_bytes(count: int) -> None:
    in_flight = InFlight(1 << 28)
    with in_flight.reserve() as first, in_flight.reserve() as second:
        first.add(1)
        second.add(count - 1)


def nested(levels: int) -> bytes:
    """An object in an object, and so on."""
    return b'{"a": ' * (levels - 1) + b"{}" + b"}" * (levels - 1)


def on_disk_with(free: int) -> Any:
    return patch.object(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 50, used=0, free=free))


def new_stack() -> None:
    with TemporaryDirectory() as folder:
        Stack(LocalSettings(stack=Path(folder)))._check_disk()


def lack(floor: int, check: Callable[[], Any]) -> Callable[[int], Any]:
    """A disk that has as many bytes less than `floor` as the size tried is beyond the limit."""

    def probe(count: int) -> None:
        with on_disk_with(2 * floor - count):
            check()

    return probe


def fill_threads(places: int) -> None:
    async def run() -> None:
        threads, released = QueryThreads("store", 1), Event()
        waiting = [asyncio.ensure_future(threads.run(lambda stop: released.wait(9), 9)) for _ in range(places)]
        await asyncio.sleep(0)  # each of them takes its place, or is refused
        released.set()
        try:
            await asyncio.gather(*waiting)
        finally:
            threads.close()

    asyncio.run(run())


PROBES: dict[str, Callable[[int], Any]] = {
    "LOGPIPE_INGEST_MAX_BODY": lambda n: list(bodies.chunks_of(bytes(n), "identity", 1 << 26)),
    "LOGPIPE_INGEST_MAX_IN_FLIGHT": add_bytes,
    "services.ingest_api.bodies._MOST_MEMBERS": lambda n: list(
        bodies.chunks_of(gzip.compress(b"x") * n, "gzip", 1 << 20)
    ),
    "services.core.row_chunks.MAX_WIRE_ROW": lambda n: list(
        row_chunks.decode_object([bytes(n)], lambda text: Rows(0, []))
    ),
    "services.ingest_api.endpoints.MAX_KEY_LENGTH": lambda n: endpoints._key(
        SimpleNamespace(headers={"idempotency-key": "k" * n})  # type: ignore[arg-type]
    ),
    "LOGPIPE_INGEST_DISK_FLOOR": lack(GIB, lambda: DiskFloor(LocalDisk("."), GIB).check()),
    "services.core.dataset.MAX_CATEGORY_CHARACTERS": lambda n: CODEC.decode_object(LOG % (b"x" * n, b"{}")),
    "services.core.rows.MAX_JSON_DEPTH": lambda n: CODEC.decode_object(LOG % (b"x", nested(n))),
    "services.core.rows.MAX_NUMBER_DIGITS": lambda n: CODEC.decode_object(LOG % (b"x", b"1" * n)),
    "services.core.instants.MAX_LENGTH": lambda n: of_row(f"2026-01-31T12:00:00.{'1' * (n - 21)}Z"),
    "services.core.result_size.MAX_GROUPS": lambda n: result_size.refuse_many_groups([()] * n),
    "services.core.result_size.MAX_RESULT_BYTES": lambda n: result_size.gather_pages([[("x" * n,)]]),
    "services.query_api.parameters.MAX_LIMIT": lambda n: parameters.ListParameters(order_by="id", limit=n),
    "services.query_api.parameters.MAX_OFFSET": TypeAdapter(parameters._Offset).validate_python,
    "services.query_api.query_threads.MOST_QUERIES": fill_threads,
    "services.local.stack._FREE_BYTES": lack(2 * GIB, new_stack),
}
"""Limit -> what takes or refuses a thing of this size."""

TRIED_IN = {
    "services.runtime.request_bodies.BODY_SECONDS": "unit/test_slow_bodies.py::test_a_body_that_trickles_is_refused",
    "services.ingest_api.decoding.TURNS_BYTES": "unit/test_bodies.py::test_one_body_at_a_time_goes_beyond_its_turns",
    "services.ingest_api.decoding.MOST_WAITING": "unit/test_bodies.py::test_too_many_bodies_that_wait_for_others",
    "services.runtime.problems.MAX_DETAIL_CHARACTERS": "unit/test_limits.py::test_a_long_detail_is_cut",
    "services.core.errors.MAX_SHOWN_CHARACTERS": "unit/test_rows.py::test_an_error_repeats_the_beginning_of_a_long",
    "LOGPIPE_REQUEST_KEY_HOURS": "integration/test_clock.py::test_keys_are_forgotten_in_chunks_by_postgres",
    "services.runtime.connections.HEAD_SECONDS": "unit/test_connections.py::test_a_head_that_comes_byte_by_byte_is_cut",
    "services.runtime.connections.HEAD_BYTES": "unit/test_connections.py::test_a_head_without_end_is_cut",
    "services.runtime.connections.WRITE_SECONDS": "unit/test_connections.py::test_a_reply_that_nobody_reads_ends",
    "services.runtime.request_bodies.GRACE_SECONDS": "unit/test_connections.py::test_a_body_that_has_just_begun",
    "services.runtime.connections.MAX_CONNECTIONS": "unit/test_connections.py::test_connections_leave_files_for",
    "services.core.rows.MAX_LINE_BYTES": "unit/test_rows.py::test_a_row_larger_than_a_message_may_be_is_refused",
    "services.core.kafka_value.MAX_VALUE_BYTES": "unit/test_kafka_value.py::test_no_value_is_larger_than_a_broker",
    "services.core.ids.MAX_BATCH_ROWS": "unit/test_kafka_value.py::test_a_message_larger_than_ours_cannot_be_loaded",
    "services.core.dead_letter.MAX_DEAD_LETTER_BYTES": "unit/test_stream_to_store.py::test_a_foreign_key_of_any_size",
    "services.core.dead_letter.MAX_REASON_CHARACTERS": "unit/test_limits.py::test_a_long_reason_is_cut",
    "services.core.dead_letter.MOST_DEAD_LETTERS": "unit/test_kafka_source.py::test_the_dead_letters_of_one",
    "services.core.completion.MOST_REJECTED": "unit/test_completion.py::test_a_store_that_refuses_rows_without_end",
    "LOGPIPE_QUERY_SECONDS": "unit/test_query_api.py::test_out_of_time",
    "services.lake.processes.ENGINE_BYTES": "unit/test_lake_reader.py::test_a_query_that_needs_more_memory",
    "services.lake.processes.PROCESS_BYTES": "unit/test_lake_processes.py::test_a_process_that_dies_fails_one_query",
    "services.local.clickhouse_bodies.MAX_BODY_BYTES": "unit/test_clickhouse_bodies.py::test_a_body_is_read_up_to",
    "services.local.clickhouse_bodies.MAX_IN_FLIGHT_BYTES": "unit/test_clickhouse_bodies.py::test_bodies_in_flight_are",
    "services.query_api.alerts.MAX_LIMIT": "integration/test_alerting.py::test_the_api",
    "services.send.source.MAX_LINE": "unit/test_send.py::test_an_endless_record_is_cut_and_the_rest_is_rejected",
    "services.send.chunks.RECORD_BYTES": "unit/test_send.py::test_a_record_of_too_many_parts_is_cut",
}
"""Limit -> the test that tries it, by the beginning of its name."""


def documented() -> dict[str, str]:
    return {limit.strip("`"): value for limit, _, value, _ in table("limits.md")}


def value_of(limit: str) -> str:
    if limit.startswith("LOGPIPE_"):
        return all_settings()[limit][0].strip("`")
    module, _, name = limit.rpartition(".")
    return str(getattr(importlib.import_module(module), name))


def test_every_limit_is_documented_as_it_is() -> None:
    found = documented()
    assert found == {limit: value_of(limit) for limit in found}


def test_every_limit_is_tried() -> None:
    assert documented().keys() == PROBES.keys() | TRIED_IN.keys()
    for test in TRIED_IN.values():
        file, _, name = test.partition("::")
        assert f"def {name}" in (TESTS / file).read_text(), test


@pytest.mark.parametrize("limit", PROBES)
def test_a_limit_is_reached_and_not_passed(limit: str) -> None:
    size = int(float(value_of(limit)))
    PROBES[limit](size)
    with pytest.raises((LogpipeError, ValidationError, ValueError)):
        PROBES[limit](size + 1)


def test_a_long_detail_is_cut() -> None:
    for size in (MAX_DETAIL_CHARACTERS, MAX_DETAIL_CHARACTERS + 1):
        assert len(json.loads(bytes(problem(422, "d" * size).body))["detail"]) == MAX_DETAIL_CHARACTERS


def test_a_long_reason_is_cut() -> None:
    for size in (MAX_REASON_CHARACTERS, MAX_REASON_CHARACTERS + 1):
        _, value = dead_letter.encode("store", DATASET, DeadLetter(0, 0, None, None, None, 1, "r" * size, b""))
        assert len(json.loads(value)["reason"]) == MAX_REASON_CHARACTERS


def test_the_limit_that_a_refused_list_is_advised_always_fits() -> None:
    row = ("x" * MAX_VALUE_BYTES,)
    assert len(result_size.gather_pages([[row] * 32])) == 32
    with pytest.raises(LogpipeError, match=" 32 always fits"):
        result_size.gather_pages([[row] * 33])
