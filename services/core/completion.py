"""Completing a write whose outcome is unknown: look what the store holds, and write what is missing.

The missing rows are written under the first attempt's token. All later writes have tokens that are made of the rows'
ids and of the number of writes of exactly these rows. The tokens serve three purposes:

- A former writer that was suspended before its insert reached the store may send the insert at any later time. A store
  that remembers tokens drops the late insert, because the token was used here.
- A store that wrote down a token but failed to keep the rows drops the rows under this token for ever. A look shows
  that the rows are still missing, and the next attempt has another token.
- Two writers may complete the same range at the same time, because one was suspended while the other took over. When
  both write the same rows, both use the same token, and the store drops the second write.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from itertools import groupby
from typing import Annotated

import msgspec
import xxhash

from services.core.errors import RowRejected, StoreDown
from services.core.ports import Block

_MOST_ATTEMPTS = 1000  # that a store may acknowledge without storing a row

Place = tuple[int, int]
"""The number of a block, and the number of a row within the block."""


class _Identity(msgspec.Struct):
    id: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


_decode = msgspec.json.Decoder(_Identity).decode


def row_ids(block: Block) -> list[int | None]:
    """Return the id of each row; None for a line that has none."""
    return [_row_id(line) for line in block.lines.split(b"\n")[:-1]]


def complete(
    store: str,
    blocks: Sequence[Block],
    stored_ids: Callable[[], Set[int]],
    write: Callable[[Sequence[Block]], None],
) -> list[RowRejected]:
    """Write the rows that are missing in `store`, and return the rows that the store refuses.

    `stored_ids` returns the ids in the store, after every former attempt has ended. Raises what `stored_ids` and
    `write` raise except RowRejected, and StoreDown if the store acknowledges rows but does not hold them.
    """
    ids = {(number, row): row_id for number, block in enumerate(blocks) for row, row_id in enumerate(row_ids(block))}
    refused = {place: RowRejected(place[1], "there is no id", block=place[0]) for place in ids if ids[place] is None}
    attempts, attempt = Counter[str](), ""
    for _ in range(_MOST_ATTEMPTS):
        there = stored_ids()
        missing = [place for place, row_id in ids.items() if place not in refused and row_id not in there]
        if not missing:
            return [refused[place] for place in sorted(refused)]
        groups = [missing]
        while groups:
            group = groups.pop()
            if attempts:
                rows = _digest(ids[place] for place in group)
                attempt = f"{rows}-{attempts[rows]}"
            attempts[attempt.partition("-")[0]] += 1
            try:
                write(_only(blocks, group, attempt))
            except RowRejected as error:
                if len(group) == 1:
                    number, row = group[0]
                    refused[group[0]] = RowRejected(row, error.reason, block=number)
                else:
                    groups += reversed(_split(group, error))
    raise StoreDown(
        store, f"{len(missing)} rows were acknowledged {attempts.total()} times, and the store does not hold them"
    )


def leave_out_refused(blocks: Sequence[Block], write: Callable[[Sequence[Block]], None]) -> list[RowRejected]:
    """Write all rows except those that the store refuses by number, in one piece, and return the refused rows."""
    refused: dict[Place, RowRejected] = {}
    left = [(number, row) for number, block in enumerate(blocks) for row in range(block.rows)]
    while True:
        try:
            write(_only(blocks, left, ""))
            return [refused[place] for place in sorted(refused)]
        except RowRejected as error:
            if error.row is None:
                raise
            number, row = place = [at for at in left if at[0] == error.block][error.row]
            refused[place] = RowRejected(row, error.reason, block=number)
            left.remove(place)


def _digest(ids: Iterable[int | None]) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(list(ids)))


def _row_id(line: bytes) -> int | None:
    try:
        return _decode(line).id
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _only(blocks: Sequence[Block], places: Sequence[Place], attempt: str) -> list[Block]:
    """Return the same blocks with the rows at `places` (in order) only."""
    rows = {number: [row for _, row in group] for number, group in groupby(places, key=lambda place: place[0])}
    cut = []
    for number, block in enumerate(blocks):
        chosen = rows.get(number, [])
        lines = block.lines
        if len(chosen) < block.rows:
            all_lines = block.lines.split(b"\n")
            lines = b"".join(all_lines[row] + b"\n" for row in chosen)
        cut.append(replace(block, rows=len(chosen), lines=lines, attempt=attempt))
    return cut


def _split(group: list[Place], error: RowRejected) -> list[list[Place]]:
    """Split around the row that the store names, or in halves. Only a row that is refused alone counts as refused."""
    if error.row is None:
        middle = len(group) // 2
        return [group[:middle], group[middle:]]
    before = sum(1 for number, _ in group if number < error.block)
    at = min(before + error.row, len(group) - 1)
    return [part for part in (group[:at], group[at : at + 1], group[at + 1 :]) if part]
