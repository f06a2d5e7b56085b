"""The id of a row: one integer, batch id * 2**17 + row number, so that the id also names the batch.

The id stays below 2**53, and is exact as a JSON number, for 6.8e10 batches.
"""

import itertools
from collections.abc import Collection

ROW_BITS = 17
MAX_BATCH_ROWS = 1 << ROW_BITS
MAX_BATCH = (1 << (53 - ROW_BITS)) - 2  # the highest batch whose rows have ids that are exact as JSON numbers


def first_id(batch_id: int) -> int:
    return batch_id << ROW_BITS


def batch_of(row_id: int) -> int:
    return row_id >> ROW_BITS


def end_id(as_of: int) -> int:
    """Return the first id that a query as of batch `as_of` must not see."""
    return (as_of + 1) << ROW_BITS


def batch_ranges(batches: Collection[int], most: int) -> list[tuple[int, int]]:
    """Return at most `most` ranges (first, last), in order, that have all these batch ids.

    Ranges are joined across the narrowest gaps, so they may have ids of other batches, too.
    """
    ordered = sorted(batches)
    if not ordered:
        return []
    widest = sorted(range(1, len(ordered)), key=lambda at: ordered[at] - ordered[at - 1], reverse=True)[: most - 1]
    cuts = [0, *sorted(widest), len(ordered)]
    return [(ordered[start], ordered[stop - 1]) for start, stop in itertools.pairwise(cuts)]
