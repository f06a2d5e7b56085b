"""The positions of a foreign topic: compare-and-set in the transaction that accepts the rows, and what is refused."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from services.acceptance.committer import Accepted, Committer, Submission
from services.core.errors import Fenced, Invalid, NeedsOperator
from services.core.ledger import Source, SourceAdvance, SourceRange
from services.core.rows import RowCodec, Rows
from services.datasets.logs import DATASET
from services.ledger import source_progress
from services.ledger.source_progress import Resumed, SourceCounts
from services.postgres.connection import Connection, connect
from tests.waiting import until

SOURCE = Source("shop.clicks", "id-1", "logs")
OTHER_TOPIC = Source("shop.clicks", "id-2", "logs")
BOUNDS = {0: (0, 100), 1: (10, 100)}
CODEC = RowCodec(DATASET)
ROW = b'{"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "auth"}'


@pytest.fixture
def connection(own_postgres_url: str) -> Iterator[Connection]:
    with closing(connect(own_postgres_url)) as opened:
        yield opened


@pytest.fixture
def committer(own_postgres_url: str) -> Iterator[Committer]:
    opened = make_committer(own_postgres_url)
    yield opened
    opened.close()


def make_committer(url: str) -> Committer:
    return Committer(url, {"logs": CODEC}, lambda: 0, lambda batch, outgoing: None, batch_rows=100, partitions=4)


def rows(count: int) -> Rows:
    return CODEC.decode_lines(b"\n".join([ROW] * count))


def taken(*ranges: SourceRange, source: Source = SOURCE) -> SourceAdvance:
    return SourceAdvance(source, ranges)


def stored(connection: Connection) -> tuple[int, int]:
    """The rows of the table, and the rows of the ledger's batches."""
    [[found]] = connection.execute("SELECT count(*) FROM logs").fetchall()
    [[batches]] = connection.execute("SELECT coalesce(sum(rows), 0) FROM batches").fetchall()
    return found, batches


def commit(committer: Committer, count: int, *ranges: SourceRange, source: Source = SOURCE) -> object:
    submission = Submission([rows(count)], source=taken(*ranges, source=source))
    [outcome] = committer.commit(DATASET, [submission])
    return outcome


def test_a_source_begins_at_the_first_messages_that_are_kept(connection: Connection) -> None:
    assert source_progress.load(connection, SOURCE, BOUNDS, [0, 1]) == {0: 0, 1: 10}
    assert source_progress.load(connection, SOURCE, BOUNDS, [1], at_end=True) == {1: 10}


def test_at_end_counts_at_the_first_start_only_and_for_all_partitions(connection: Connection) -> None:
    assert source_progress.load(connection, SOURCE, BOUNDS, [0], at_end=True) == {0: 100}
    grown = {0: (0, 120), 1: (10, 130), 2: (0, 5)}
    assert source_progress.load(connection, SOURCE, grown, [0, 1, 2], at_end=True) == {0: 100, 1: 100, 2: 0}


def test_rows_ledger_and_offsets_are_one_transaction(connection: Connection, committer: Committer) -> None:
    source_progress.load(connection, SOURCE, BOUNDS, [0, 1])
    outcome = commit(committer, 250, SourceRange(0, 0, 7, 151, 150, 1), SourceRange(1, 10, 20, 100, 100, 0))
    assert isinstance(outcome, Accepted)
    assert outcome.rows == 250
    assert stored(connection) == (250, 250)
    assert source_progress.load(connection, SOURCE, BOUNDS, [0, 1]) == {0: 7, 1: 20}
    assert source_progress.counts(connection, "logs") == [SourceCounts("shop.clicks", "logs", 251, 250, 1, False)]
    assert source_progress.counts(connection, "events") == []


def test_a_zombie_is_fenced_and_stores_nothing(connection: Connection, committer: Committer) -> None:
    source_progress.load(connection, SOURCE, BOUNDS, [0, 1])
    assert isinstance(commit(committer, 5, SourceRange(0, 0, 5, 5, 5)), Accepted)
    for ranges in (
        [SourceRange(0, 0, 5, 5, 5)],  # the same again
        [SourceRange(0, 4, 9, 5, 5)],  # overlaps
        [SourceRange(1, 10, 15, 5, 5), SourceRange(0, 0, 5, 5, 5)],  # one of two partitions is another's
        [SourceRange(7, 0, 5, 5, 5)],  # a partition without a position
    ):
        assert isinstance(commit(committer, 5, *ranges), Fenced)
    assert isinstance(commit(committer, 5, SourceRange(0, 5, 10, 5, 5), source=OTHER_TOPIC), Fenced)
    with pytest.raises(Fenced):
        source_progress.advance_alone(connection, taken(SourceRange(0, 0, 5, 5, 5)))
    assert stored(connection) == (5, 5)
    assert source_progress.load(connection, SOURCE, BOUNDS, [0, 1]) == {0: 5, 1: 10}
    assert isinstance(commit(committer, 1, SourceRange(0, 5, 6, 1, 1)), Accepted)  # the connection is fit for use


def test_of_two_processes_at_once_one_commits(connection: Connection, own_postgres_url: str) -> None:
    """The second one waits for the first one's transaction, and then sees its position."""
    source_progress.load(connection, SOURCE, BOUNDS, [0])
    outcomes: list[object] = []

    def run() -> None:
        second = make_committer(own_postgres_url)
        outcomes.append(commit(second, 5, SourceRange(0, 0, 5, 5, 5)))
        second.close()

    with closing(connect(own_postgres_url, autocommit=False)) as first:
        with first.cursor() as cursor:
            source_progress.advance(cursor, taken(SourceRange(0, 0, 5, 5, 5)))
        thread = threading.Thread(target=run)
        thread.start()
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        until(lambda: connection.execute(waiting).fetchone() is not None)
        first.commit()
    thread.join()
    assert isinstance(outcomes[0], Fenced)
    assert stored(connection) == (0, 0)


def test_a_rollback_leaves_the_position(connection: Connection, committer: Committer) -> None:
    """PostgreSQL refuses a value that validation let through."""
    source_progress.load(connection, SOURCE, BOUNDS, [0])
    values: list[list[object]] = [list(column) for column in rows(1).columns]
    values[4] = ["a\x00b"]
    [outcome] = committer.commit(DATASET, [Submission([Rows(1, values)], source=taken(SourceRange(0, 0, 1, 1, 1)))])
    assert isinstance(outcome, Invalid)
    assert source_progress.load(connection, SOURCE, BOUNDS, [0]) == {0: 0}
    assert source_progress.counts(connection, "logs")[0].lines == 0


@pytest.mark.parametrize(
    ("source", "bounds", "reason"),
    [
        (OTHER_TOPIC, BOUNDS, "created again"),
        (SOURCE, {0: (0, 40), 1: (10, 100)}, "the topic was cut"),
        (SOURCE, {0: (60, 100), 1: (10, 100)}, "deleted before they were read"),
    ],
)
def test_a_topic_that_does_not_fit_is_refused_until_an_operator_resumes(
    connection: Connection,
    committer: Committer,
    source: Source,
    bounds: source_progress.Bounds,
    reason: str,
) -> None:
    source_progress.load(connection, SOURCE, BOUNDS, [0, 1])
    commit(committer, 50, SourceRange(0, 0, 50, 50, 50))
    with pytest.raises(NeedsOperator, match=rf"{reason}.*--topic shop.clicks --dataset logs --resume"):
        source_progress.load(connection, source, bounds, [1])
    before = {0: 50, 1: 10}
    after = {0: 0, 1: 10} if source is OTHER_TOPIC else {0: min(bounds[0][1], max(50, bounds[0][0])), 1: 10}
    moved = [0, 1] if source is OTHER_TOPIC else [0]
    resumed = source_progress.resume(connection, source, bounds)
    assert resumed == [Resumed(partition, before[partition], after[partition]) for partition in moved]
    assert source_progress.load(connection, source, bounds, [0, 1]) == after
    [counts] = source_progress.counts(connection, "logs")
    assert (counts.rows, counts.is_resumed) == (50, True)
    assert isinstance(commit(committer, 1, SourceRange(0, 50, 51, 1, 1)), Fenced)  # a process that read on until now
    assert source_progress.resume(connection, source, bounds) == []


def test_a_new_topic_may_have_fewer_partitions_and_get_more_later(connection: Connection) -> None:
    source_progress.load(connection, SOURCE, BOUNDS, [0, 1])
    assert source_progress.resume(connection, OTHER_TOPIC, {0: (0, 3)}) == [Resumed(0, 0, 0)]
    assert source_progress.load(connection, OTHER_TOPIC, {0: (0, 3)}, [0]) == {0: 0}
    assert source_progress.load(connection, OTHER_TOPIC, {0: (0, 3), 1: (0, 9)}, [0, 1]) == {0: 0, 1: 0}
