"""Completes a write whose outcome is unknown: searches the store for the rows, and writes the missing ones.

The missing rows are first written under the token of the first attempt. If the store rejects the write, the lines of
all blocks are halved, the missing rows of each half are written alone, and so on. Where the lines are halved depends on
the blocks alone, not on what is missing. The token of every later write is a hash of all row ids of its half, or of all
rows, and the number of earlier writes of the same half. The tokens serve three purposes:

- A former writer that was suspended before its insert reached the store may send the insert at any later time. A store
  that remembers tokens drops the late insert, because the token was used here.
- A store that wrote down a token but failed to keep the rows drops the rows under this token for ever. A search shows
  that the rows are still missing, and the next attempt has another token.
- Two writers may complete the same range at the same time, because one was suspended while the other took over. Both
  write by the same halves, under the same tokens, and the store drops the second write of a half. A half that
  one of them has seen rejected is rejected for the other, too, because a rejected row is never stored.

Lines that are no rows by our own check (`lines`) are rejected without a write. Of the other rows, only a row that is
rejected alone counts as rejected.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import replace
from itertools import accumulate, chain

import msgspec
import xxhash

from services.core import kafka_value
from services.core.errors import RowRejected, StoreDown
from services.core.ids import batch_of
from services.core.lines import line_check
from services.core.ports import Block

MOST_REJECTED = 1000
"""Rows of one completion that pass our own check and that the store may reject all the same.

Beyond, or where the store rejects each of several rows, the fault is taken to be the store's (a column of another type,
a view that throws), and the store counts as down: none of the rows becomes a dead letter.
"""

_MOST_ATTEMPTS = 1000  # that a store may acknowledge without storing a row


def complete(
    store: str,
    blocks: Sequence[Block],
    end_and_search: Callable[[Set[int]], Set[int]],
    write: Callable[[Sequence[Block]], None],
) -> list[RowRejected]:
    """Write the rows that are missing in `store`, and return the rows that it will never hold.

    `end_and_search` ends every former attempt, and returns which ids of these batches are in the store. Raises what
    `end_and_search` and `write` raise except RowRejected, and StoreDown if the store acknowledges rows but does not
    hold them, or rejects too many of the rows that pass our own check (see MOST_REJECTED).
    """
    rows = _Rows(blocks)
    ids, _, problems = line_check(blocks[0].dataset).check(rows.lines)
    batches = {batch_of(row_id) for row_id in ids if row_id is not None}
    rejected: dict[int, str] = {}
    attempts, attempt, by_store = Counter[str](), "", 0
    for _ in range(_MOST_ATTEMPTS):
        there = end_and_search(batches)
        rejected |= {at: reason for at, reason in problems.items() if ids[at] not in there}
        missing = [at for at, row_id in enumerate(ids) if row_id not in there and at not in rejected]
        if not missing:
            return [rows.rejection(at, rejected[at]) for at in sorted(rejected)]
        halves = [(0, len(ids))]
        while halves:
            first, end = halves.pop()
            group = missing[bisect_left(missing, first) : bisect_left(missing, end)]
            if not group:
                continue
            if attempts:
                digest = _digest(ids[first:end])
                attempt = f"{digest}-{attempts[digest]}"
            attempts[attempt.partition("-")[0]] += 1
            try:
                write(rows.only(group, attempt))
            except RowRejected as error:
                if end - first > 1:
                    middle = (first + end) // 2
                    halves += [(middle, end), (first, middle)]
                    continue
                rejected[first] = error.reason
                by_store += 1
                if by_store > MOST_REJECTED or 1 < by_store == len(ids) - len(problems):
                    raise StoreDown(store, f"it refuses {by_store} rows that seem sound: {error.reason}") from error
    raise StoreDown(
        store, f"{len(missing)} rows were acknowledged {attempts.total()} times, and the store does not hold them"
    )


def without(blocks: Sequence[Block], rejected: Collection[RowRejected]) -> list[Block]:
    """Return the same blocks without the rows that are rejected."""
    rows = _Rows(blocks)
    left_out = {rows.place(each) for each in rejected}
    return rows.only([at for at in range(len(rows.lines)) if at not in left_out], "")


class _Rows:
    """The rows of all blocks, numbered through."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        of_blocks = [kafka_value.split(block.lines) for block in blocks]
        self.lines = list(chain.from_iterable(of_blocks))
        self._starts = [0, *accumulate(map(len, of_blocks))]

    def place(self, rejection: RowRejected) -> int:
        return self._starts[rejection.block] + (rejection.row or 0)

    def rejection(self, at: int, reason: str) -> RowRejected:
        block = bisect_left(self._starts, at + 1) - 1
        return RowRejected(at - self._starts[block], reason, block=block)

    def only(self, group: Sequence[int], attempt: str) -> list[Block]:
        """Return the same blocks with the rows of `group` (in order) only."""
        cut = []
        for number, block in enumerate(self._blocks):
            own = group[bisect_left(group, self._starts[number]) : bisect_left(group, self._starts[number + 1])]
            lines = block.lines
            if len(own) < block.rows:
                lines = kafka_value.join([self.lines[at] for at in own])
            cut.append(replace(block, rows=len(own), lines=lines, attempt=attempt))
        return cut


def _digest(ids: Iterable[int | None]) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(list(ids)))
