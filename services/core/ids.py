"""A row's identity: one integer that carries its batch, ordered and unique by construction.

id = batch_id * 2**17 + row number. It stays below 2**53, exact as a JSON number, for 6.8e10 batches.
"""

ROW_BITS = 17
MAX_BATCH_ROWS = 1 << ROW_BITS
MAX_BATCH = (1 << 53 - ROW_BITS) - 2  # whose rows have ids that are exact as JSON numbers


def first_id(batch_id: int) -> int:
    return batch_id << ROW_BITS


def batch_of(row_id: int) -> int:
    return row_id >> ROW_BITS


def end_id(as_of: int) -> int:
    """The first id that a question asked as of batch `as_of` must not see."""
    return (as_of + 1) << ROW_BITS
