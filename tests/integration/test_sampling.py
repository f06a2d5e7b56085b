"""Batches of the ledger chosen at random, on a real PostgreSQL."""

from collections.abc import Iterator
from random import Random

import pytest

from services.ledger import sampling
from services.postgres.connection import Connection, connect

_FAR = 10**9


@pytest.fixture
def ledger(own_postgres_url: str) -> Iterator[Connection]:
    """3,000 batches of logs, a leap of the ids, 3,000 more, and 3 batches of events."""
    with connect(own_postgres_url) as connection:
        connection.execute("INSERT INTO id_leaps (after, until) VALUES (3000, %s)", (_FAR,))
        for dataset, first, last in (
            ("logs", 1, 3000),
            ("logs", _FAR + 1, _FAR + 3000),
            ("events", _FAR + 3001, _FAR + 3003),
        ):
            connection.execute(
                "INSERT INTO batches (batch_id, slot, dataset, rows, checksum, xid, created_at)"
                " SELECT n, 0, %s, 1, 1, pg_current_xact_id(), 0 FROM generate_series(%s::bigint, %s) AS n",
                (dataset, first, last),
            )
        yield connection


def test_batches_on_both_sides_of_a_leap_are_chosen(ledger: Connection) -> None:
    chosen = [batch.batch_id for batch in sampling.choose(ledger, "logs", 0, _FAR + 3003, 100, Random(1))]
    assert len(set(chosen)) == 100
    assert chosen == sorted(chosen)
    assert 20 < sum(batch_id > _FAR for batch_id in chosen) < 80


def test_all_batches_of_a_dataset_that_has_few_can_be_chosen(ledger: Connection) -> None:
    chosen = sampling.choose(ledger, "events", 0, _FAR + 3003, 100, Random(1))
    assert [batch.batch_id for batch in chosen] == [_FAR + 3001, _FAR + 3002, _FAR + 3003]
    [one] = sampling.choose(ledger, "events", _FAR + 3002, _FAR + 3002, 100, Random(1))
    assert one.batch_id == _FAR + 3002


def test_a_dataset_without_batches_costs_one_look(ledger: Connection) -> None:
    assert sampling.choose(ledger, "others", 0, _FAR + 3003, 100, Random(1)) == []
