"""Row ids, and the ranges of batches that one query asks for."""

from services.core.ids import batch_ranges


def test_batches_are_joined_to_spans_across_the_narrowest_gaps() -> None:
    assert batch_ranges([], 3) == []
    assert batch_ranges({5}, 3) == [(5, 5)]
    assert batch_ranges({1, 2, 3}, 1) == [(1, 3)]
    assert batch_ranges({1, 2, 9, 10, 1000, 1003}, 3) == [(1, 2), (9, 10), (1000, 1003)]
    assert batch_ranges({4, 1, 2}, 9) == [(1, 1), (2, 2), (4, 4)]
