"""Completing a write, as two consumers may do at the same time: each row is stored once."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest

from services.core.completion import complete, row_ids
from services.core.errors import RowRejected, StoreDown
from services.core.ids import first_id
from services.core.ports import Block, joint_token
from services.datasets.logs import DATASET

IDS = [first_id(5) + number for number in range(4)]
BAD = IDS[1]


class Table:
    """Remembers tokens as a store does, and refuses the row BAD by its number."""

    def __init__(self) -> None:
        self.rows = Counter[int]()
        self.tokens: set[str] = set()

    def ids(self) -> set[int]:
        return set(self.rows)

    def write(self, blocks: Sequence[Block]) -> None:
        ids = [row_id for block in blocks for row_id in row_ids(block) if row_id is not None]
        if BAD in ids:
            raise RowRejected(ids.index(BAD), "bad", block=0)
        if joint_token(blocks) not in self.tokens:
            self.tokens.add(joint_token(blocks))
            self.rows.update(ids)


def block() -> Block:
    lines = b"".join(msgspec.json.encode({"id": row_id}) + b"\n" for row_id in IDS)
    return Block(DATASET, "topic", 0, 0, 9, 0, len(IDS), lines)


@pytest.mark.parametrize("pause", range(1, 5))
def test_a_consumer_that_is_suspended_while_another_completes_doubles_nothing(pause: int) -> None:
    """The consumer is suspended before its write number `pause`; it wakes up when the other one is done."""
    table, writes = Table(), 0

    def write(blocks: Sequence[Block]) -> None:
        nonlocal writes
        writes += 1
        if writes == pause:
            complete("store", [block()], table.ids, table.write)
        table.write(blocks)

    (refused,) = complete("store", [block()], table.ids, write)
    assert refused.row == IDS.index(BAD)
    assert table.rows == dict.fromkeys([row_id for row_id in IDS if row_id != BAD], 1)


def test_a_token_that_was_written_down_without_rows_is_not_used_for_ever() -> None:
    table = Table()
    trapped = 3  # so many writes are dropped although the store does not hold their rows

    def write(blocks: Sequence[Block]) -> None:
        nonlocal trapped
        trapped -= 1
        if trapped >= 0:
            table.tokens.add(joint_token(blocks))
        else:
            table.write(blocks)

    assert len(complete("store", [block()], table.ids, write)) == 1
    assert set(table.rows.values()) == {1}


def test_a_store_that_never_holds_what_it_acknowledges_is_down() -> None:
    with pytest.raises(StoreDown, match="does not hold them"):
        complete("store", [block()], set, lambda blocks: None)
