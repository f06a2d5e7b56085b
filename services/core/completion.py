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

A line that our own check (`lines`) finds invalid is rejected without a write. Any other row counts as rejected only
after a write of this row alone was rejected.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
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
"""The most rows of one completion that a store may reject although they pass our own check.

If the store rejects more, or each of several rows, the store itself is taken to be faulty (a column of another type, a
view that throws). It then counts as down, and none of the rows becomes a dead letter.
"""

_MOST_ATTEMPTS = 1000  # that a store may acknowledge, and still lack rows


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
    numbered = _BlockLines(blocks)
    ids, _, problems = line_check(blocks[0].dataset).check(numbered.lines)
    batches = {batch_of(row_id) for row_id in ids if row_id is not None}
    rejected: dict[int, str] = {}
    tokens, rejected_by_store = _Tokens(), 0
    for _ in range(_MOST_ATTEMPTS):
        stored = end_and_search(batches)
        rejected |= {at: reason for at, reason in problems.items() if ids[at] not in stored}
        missing = [at for at, row_id in enumerate(ids) if row_id not in stored and at not in rejected]
        if not missing:
            return [numbered.rejection(at, rejected[at]) for at in sorted(rejected)]
        for at, error in _write_by_halves(numbered, ids, missing, tokens, write):
            rejected[at] = error.reason
            rejected_by_store += 1
            if rejected_by_store > MOST_REJECTED or 1 < rejected_by_store == len(ids) - len(problems):
                reason = f"it rejects {rejected_by_store} rows that pass our own check: {error.reason}"
                raise StoreDown(store, reason) from error
    raise StoreDown(
        store, f"{len(missing)} rows were acknowledged {tokens.given} times, and the store does not hold them"
    )


def _write_by_halves(
    numbered: "_BlockLines",
    ids: Sequence[int | None],
    missing: Sequence[int],
    tokens: "_Tokens",
    write: Callable[[Sequence[Block]], None],
) -> Iterator[tuple[int, RowRejected]]:
    """Write the missing lines, and yield each line that the store rejects when it is written alone."""
    halves = [(0, len(ids))]
    while halves:
        first, end = halves.pop()
        wanted = missing[bisect_left(missing, first) : bisect_left(missing, end)]
        if not wanted:
            continue
        try:
            write(numbered.only(wanted, tokens.next(ids[first:end])))
        except RowRejected as error:
            if end - first == 1:
                yield first, error
            else:
                middle = (first + end) // 2
                halves += [(middle, end), (first, middle)]


class _Tokens:
    """The tokens of the writes of one completion. `given` is the number of tokens so far."""

    def __init__(self) -> None:
        self.given = 0
        self._of_half = Counter[str]()

    def next(self, ids: Iterable[int | None]) -> str:
        """Return '' at the first call, then the digest of the half's ids and the number of its earlier writes."""
        self.given += 1
        if self.given == 1:
            return ""
        digest = xxhash.xxh3_128_hexdigest(msgspec.json.encode(list(ids)))
        token = f"{digest}-{self._of_half[digest]}"
        self._of_half[digest] += 1
        return token


def without(blocks: Sequence[Block], rejected: Collection[RowRejected]) -> list[Block]:
    """Return the same blocks without the rows that are rejected."""
    numbered = _BlockLines(blocks)
    left_out = {numbered.number(each) for each in rejected}
    return numbered.only([at for at in range(len(numbered.lines)) if at not in left_out], "")


class _BlockLines:
    """The lines of all blocks, numbered from 0 through all blocks."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        of_blocks = [kafka_value.split(block.lines) for block in blocks]
        self.lines = list(chain.from_iterable(of_blocks))
        self._starts = [0, *accumulate(map(len, of_blocks))]

    def number(self, rejection: RowRejected) -> int:
        """Return the number of the line that the rejection is about."""
        return self._starts[rejection.block] + (rejection.row or 0)

    def rejection(self, at: int, reason: str) -> RowRejected:
        """Return the rejection of line `at`."""
        block = bisect_left(self._starts, at + 1) - 1
        return RowRejected(at - self._starts[block], reason, block=block)

    def only(self, wanted: Sequence[int], attempt: str) -> list[Block]:
        """Return the same blocks, with only the `wanted` lines. `wanted` are numbers, in order."""
        cut = []
        for number, block in enumerate(self._blocks):
            own = wanted[bisect_left(wanted, self._starts[number]) : bisect_left(wanted, self._starts[number + 1])]
            lines = block.lines
            if len(own) < block.rows:
                lines = kafka_value.join([self.lines[at] for at in own])
            cut.append(replace(block, rows=len(own), lines=lines, attempt=attempt))
        return cut
