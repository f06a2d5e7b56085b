"""What a rollup is asked for, and what it is made of, without a store."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.core import rollups
from services.core.dataset import Column
from services.core.ids import first_id
from services.core.ledger import Batch
from services.core.queries import MINUTE, AggregateQuery, Filters, ListQuery, Query, StatsQuery
from services.datasets.events import DATASET as EVENTS
from services.datasets.logs import DATASET as LOGS
from services.stores.postgres import rollup_chunks as chunks
from services.stores.postgres.rollup_chunks import Chunk, next_chunk

DAY = 86_400_000_000


def within(value: int, start: int | None, end: int | None) -> bool:
    return (start is None or start <= value) and (end is None or value < end)


instants = st.none() | st.integers(0, 5 * MINUTE) | st.integers(0, 5).map(lambda n: n * MINUTE)


@given(instants, instants, st.integers(1, 9), st.integers(0, 5), st.integers(0, 12), st.integers(0, 5 * MINUTE))
@example(MINUTE, MINUTE + 1, 1, 0, 0, MINUTE)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # it is the machine that is
def test_each_row_is_counted_once_if_it_is_asked_for(
    start: int | None, end: int | None, until: int, newer: int, batch: int, time: int
) -> None:
    as_of = until - 1 + newer
    plan = rollups.plan(AggregateQuery(LOGS, "level", Filters(start=start, end=end)), until, as_of)
    if plan is None:
        assert start is not None and end is not None and -(-start // MINUTE) >= end // MINUTE  # noqa: PT018
        return
    row_id, minute = first_id(batch) + 7, time - time % MINUTE
    counted = [batch < plan.until and within(minute, plan.minutes.start, plan.minutes.end)]
    counted += [r.first_id <= row_id < r.end_id and within(time, r.times.start, r.times.end) for r in plan.rows]
    assert sum(counted) == (batch <= as_of and within(time, start, end))


KNOWN: list[Query] = [
    StatsQuery(LOGS),
    ListQuery(LOGS),
    ListQuery(LOGS, Filters((("level", "INFO"), ("host", ""))), limit=1, offset=9, after=(0, 1)),
    AggregateQuery(LOGS, "service", Filters((("host", "a"),), start=5)),
    AggregateQuery(LOGS, None, bucket=60 * MINUTE),
    AggregateQuery(EVENTS, "device_type", bucket=MINUTE),
]
UNKNOWN: list[Query] = [
    ListQuery(LOGS, count=False),
    ListQuery(LOGS, Filters(text="x")),
    ListQuery(EVENTS, Filters((("user_id", "user_1"),))),
    AggregateQuery(EVENTS, "event_type", Filters((("user_id", "user_1"),))),
    AggregateQuery(LOGS, "message"),
    AggregateQuery(LOGS, "level", bucket=MINUTE // 2),
]


@pytest.mark.parametrize("query", KNOWN)
def test_what_a_rollup_knows(query: Query) -> None:
    assert rollups.plan(query, 1, 1)
    assert rollups.plan(replace(query, scan=True), 1, 1) is None
    assert rollups.plan(query, 0, 1) is None, "it holds nothing yet"


@pytest.mark.parametrize("query", UNKNOWN)
def test_what_a_rollup_does_not_know(query: Query) -> None:
    assert rollups.plan(query, 1, 1) is None


def test_the_name_says_the_groupings() -> None:
    assert rollups.name(LOGS) == "logs_by_level_service_host"


def test_a_long_name_is_cut_so_that_other_groupings_have_another_name() -> None:
    """PostgreSQL cuts a name after 63 bytes. A grouping that is appended to a cut name would not change the name."""
    groupings = [f"grouping_{number}" for number in range(6)]
    columns = (*EVENTS.columns, *(Column(name, "category", added=True) for name in groupings))
    datasets = [replace(EVENTS, columns=columns, groupings=tuple(groupings[:count])) for count in range(1, 7)]
    names = [rollups.name(dataset) for dataset in datasets]
    assert names[:4] == [f"events_by_{'_'.join(groupings[:count])}" for count in range(1, 5)]
    assert len({name[:63] for name in names}) == 6
    assert max(map(len, names)) <= 63
    assert len(rollups.name(replace(datasets[-1], name="n" * 51))) == 63
    assert names[-2:] == ["events_by_b3987daa", "events_by_ccfb9a49"], "a name that changed would make an empty rollup"


def batches(*rows_and_days: tuple[int, int]) -> list[Batch]:
    return [Batch(10 + 3 * n, 0, "logs", rows, 0, day * DAY + n) for n, (rows, day) in enumerate(rows_and_days)]


def test_a_chunk_is_whole_when_it_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 100)
    assert next_chunk([]) is None
    assert next_chunk(batches((60, 5), (39, 5))) is None
    assert next_chunk(batches((60, 5), (40, 5))) == Chunk(14, 5, 100)
    assert next_chunk(batches((60, 5), (41, 5), (50, 5))) == Chunk(14, 5, 101)


def test_a_chunk_ends_with_the_day_of_acceptance() -> None:
    assert next_chunk(batches((1, 5), (2, 5), (3, 6))) == Chunk(14, 5, 3)
    assert next_chunk(batches((1, 6), (2, 5), (3, 6))) == Chunk(11, 6, 1), "two processes at midnight"


def test_a_chunk_has_no_more_batches_than_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BATCHES", 2)
    assert next_chunk(batches((1, 5))) is None
    assert next_chunk(batches((1, 5), (1, 5))) == Chunk(14, 5, 2)
