"""Back-pressure: how many offsets a batch may have, from a budget of rows."""

import pytest

from spark_jobs.stream import adapted

BUDGET = 600_000


@pytest.mark.parametrize(
    ("limit", "offsets", "rows", "expected"),
    [
        (2000, 2000, 600_000, 2000),
        (2000, 50, 100, 2000),  # all there was
        (2000, 2000, 2000, 600_000),  # a row a message
        (2000, 2000, 0, 1_200_000_000),  # nothing but control records
        (2000, 1000, 1_800_000, 333),
        (2000, 2000, 1_100_000, 2000),  # not far off
        (2000, 3, 6_000_000, 100),
    ],
)
def test_the_limit_follows_what_batches_show(limit: int, offsets: int, rows: int, expected: int) -> None:
    assert adapted(limit, BUDGET, offsets, rows) == expected
