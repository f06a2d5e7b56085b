"""How large the result of one query may be. Every store checks this while it reads, before the result is in memory."""

from collections.abc import Iterable, Sequence

from services.core.errors import ResultTooLarge
from services.core.kafka_value import MAX_VALUE_BYTES
from services.core.rows import Row

MAX_GROUPS = 50_000
"""Groups of an aggregate; a store reads at most one more than that."""

MAX_RESULT_BYTES = 16 << 20
"""Size of a result: a byte for each character of a text, eight for each number and each time."""

ROWS_THAT_FIT = MAX_RESULT_BYTES // MAX_VALUE_BYTES
"""Rows of a list that are never too large: no row is larger than a Kafka message, whoever wrote the message."""

_NUMBER_BYTES = 8


def gather_pages(pages: Iterable[Sequence[Row]]) -> list[Row]:
    """Return the rows of all pages, which are read one after the other. Raises ResultTooLarge."""
    rows: list[Row] = []
    size = 0
    for page in pages:
        size += sum(map(_size, zip(*page, strict=True)))
        if size > MAX_RESULT_BYTES:
            raise too_large()
        rows += page
    return rows


def too_large() -> ResultTooLarge:
    return ResultTooLarge(
        f"the result is larger than {MAX_RESULT_BYTES >> 20} MiB: ask for a smaller limit, of which"
        f" {ROWS_THAT_FIT} always fits, and go on with next_cursor; or for fewer groups"
    )


def refuse_many_groups(groups: list[Row]) -> list[Row]:
    """Return `groups`. Raises ResultTooLarge if there are more than MAX_GROUPS; a store reads at most one more."""
    if len(groups) > MAX_GROUPS:
        raise ResultTooLarge(
            f"the result has more than {MAX_GROUPS} groups: ask for a longer bucket, a shorter time range, more filters"
            " or another group_by"
        )
    return groups


def _size(values: Sequence[object]) -> int:
    """Return the size of one column, whose values are all texts, or all numbers or missing."""
    if isinstance(values[0], str):
        return sum(map(len, values))  # type: ignore[arg-type]
    return _NUMBER_BYTES * len(values)
