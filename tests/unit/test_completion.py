"""Completing a write, as two consumers may do at the same time: each row is stored once."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence, Set

import msgspec
import pytest

from services.core import completion
from services.core.completion import complete
from services.core.errors import RowRejected, StoreDown
from services.core.ids import batch_of, first_id
from services.core.lines import line_check
from services.core.ports import Block, group_token
from services.core.rows import RowCodec
from services.datasets.logs import DATASET

CODEC = RowCodec(DATASET)
IDS = [first_id(5) + number for number in range(8)]
BAD = IDS[1]


class Table:
    """Remembers tokens as a store does, and refuses the rows `bad` without saying which they are."""

    def __init__(self, bad: Collection[int] = (BAD,)) -> None:
        self.rows = Counter[int]()
        self.tokens: set[str] = set()
        self.writes = 0
        self._bad = set(bad)

    def ids(self, batches: Set[int]) -> set[int]:
        return {row_id for row_id in self.rows if batch_of(row_id) in batches}

    def write(self, blocks: Sequence[Block]) -> None:
        self.writes += 1
        assert all(block.lines.count(b"\n") == block.rows for block in blocks)
        ids = [msgspec.json.decode(line)["id"] for block in blocks for line in block.lines.splitlines()]
        if self._bad.intersection(ids):
            raise RowRejected(None, "bad")
        if group_token(blocks) not in self.tokens:
            self.tokens.add(group_token(blocks))
            self.rows.update(ids)


def lines(ids: Iterable[int]) -> list[bytes]:
    return CODEC.encode([(row_id, 5, 5, "INFO", "api", "", "m", "{}") for row_id in ids])


def block(own: Sequence[bytes] = (), partition: int = 0) -> Block:
    own = own or lines(IDS)
    return Block(DATASET, "topic", partition, 0, 9, 0, len(own), b"".join(line + b"\n" for line in own))


@pytest.mark.parametrize("pause", range(1, 16))
@pytest.mark.parametrize("bad", [*((at,) for at in range(5)), (0, 3), (1, 2), (0, 4), (2, 3, 4)])
@pytest.mark.parametrize("count", [5, 8])
def test_a_consumer_that_is_suspended_while_another_completes_doubles_nothing(
    count: int, bad: Sequence[int], pause: int
) -> None:
    """The consumer is suspended before its write number `pause`; it wakes up when the other one is done."""
    table, writes = Table([IDS[at] for at in bad]), 0
    own = lines(IDS[:count])

    def write(blocks: Sequence[Block]) -> None:
        nonlocal writes
        writes += 1
        if writes == pause:
            complete("store", [block(own)], table.ids, table.write)
        table.write(blocks)

    rejected = complete("store", [block(own)], table.ids, write)
    assert [each.row for each in rejected] == list(bad)
    assert table.rows == dict.fromkeys([IDS[at] for at in range(count) if at not in bad], 1)


def test_a_token_that_was_written_down_without_rows_is_not_used_for_ever() -> None:
    table = Table()
    trapped = 3  # so many writes are dropped although the store does not hold their rows

    def write(blocks: Sequence[Block]) -> None:
        nonlocal trapped
        trapped -= 1
        if trapped >= 0:
            table.tokens.add(group_token(blocks))
        else:
            table.write(blocks)

    assert len(complete("store", [block()], table.ids, write)) == 1
    assert set(table.rows.values()) == {1}


def test_a_store_that_never_holds_what_it_acknowledges_is_down() -> None:
    with pytest.raises(StoreDown, match="does not hold them"):
        complete("store", [block()], lambda batches: set(), lambda blocks: None)


def test_lines_that_are_no_rows_are_refused_without_asking_the_store() -> None:
    table = Table()
    own = lines(range(first_id(7), first_id(7) + 3000))
    bad = {0, 5, 1500, 2999}
    for at in bad:
        own[at] = own[at].replace(b'"timestamp":5', b'"timestamp":"five"')
    rejected = complete("store", [block(own[:1000]), block(own[1000:], 1)], table.ids, table.write)
    assert [(each.block, each.row) for each in rejected] == [(0, 0), (0, 5), (1, 500), (1, 1999)]
    assert "Expected `int`" in rejected[0].reason
    assert table.rows == dict.fromkeys([first_id(7) + at for at in range(3000) if at not in bad], 1)
    assert table.writes == 1


def test_rows_that_the_store_refuses_without_a_name_are_found_by_halves() -> None:
    ids = range(first_id(7), first_id(7) + 4096)
    bad = [ids[0], ids[2000], ids[4095]]
    table = Table(bad)
    own = lines(ids)
    rejected = complete("store", [block(own[:1]), block(own[1:], 1)], table.ids, table.write)
    assert [(each.block, each.row) for each in rejected] == [(0, 0), (1, 1999), (1, 4094)]
    assert table.rows == dict.fromkeys(set(ids) - set(bad), 1)
    assert table.writes < 3 * 2 * 13


def test_a_line_that_the_store_holds_though_it_is_no_row_is_not_refused() -> None:
    """The store took the line in a first attempt, whose reply was lost."""
    table = Table()
    own = lines([IDS[0]])[0].replace(b'"host":""', b'"host":5')
    table.rows[IDS[0]] = 1
    assert complete("store", [block([own])], table.ids, table.write) == []
    assert table.writes == 0


def test_a_store_that_refuses_rows_without_end_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "MOST_REJECTED", 10)
    ids = [first_id(7) + number for number in range(100)]
    table = Table(ids[:11])
    with pytest.raises(StoreDown, match="rejects 11 rows that pass our own check: bad"):
        complete("store", [block(lines(ids))], table.ids, table.write)
    assert len(complete("store", [block(lines(ids[1:]))], table.ids, table.write)) == 10


def test_a_store_that_refuses_each_of_several_rows_is_down() -> None:
    """However few they are: none of them is a bad row then."""
    with pytest.raises(StoreDown, match="rejects 3 rows that pass our own check"):
        complete("store", [block(lines(IDS[:3]))], (table := Table(IDS)).ids, table.write)
    assert len(complete("store", [block(lines(IDS[:1]))], table.ids, table.write)) == 1


def test_a_line_that_gives_a_name_twice_is_no_row() -> None:
    table = Table(())
    first, second = lines(IDS[:2])
    own = [first.replace(b'"level":"INFO"', b'"level":"INFO","level":"WARN"'), second.replace(b":", b": ")]
    rejected = complete("store", [block(own)], table.ids, table.write)
    assert [(each.row, each.reason) for each in rejected] == [(0, "a name is given twice")]


def test_a_column_that_is_unknown_may_have_a_number_of_any_length() -> None:
    """int() refuses a number of more than 4,300 digits. A bad line before it has each line checked by itself."""
    [line] = lines(IDS[:1])
    long = line.removesuffix(b"}") + b',"x":' + b"1" * 5000 + b"}"
    assert line_check(DATASET).check([b"not json", long]).ids == [None, IDS[0]]


def test_a_line_that_the_store_has_taken_and_our_check_rejects_is_stored() -> None:
    """A number in quotes, for example."""
    table = Table(())
    table.rows[IDS[0]] = 1
    quoted = [line.replace(b'"id":', b'"id":"', 1).replace(b",", b'",', 1) for line in lines(IDS[:2])]
    too_long = quoted[1].replace(b'"id":"', b'"id":"' + b"9" * 5000)
    rejected = complete("store", [block([*quoted, too_long])], table.ids, table.write)
    assert [each.row for each in rejected] == [1, 2]


def test_a_line_of_several_values_is_no_row() -> None:
    table = Table(())
    (first, second, third) = lines(IDS[:3])
    own = [first + second, b"", third]
    assert not line_check(DATASET).are_rows_of(first + second + b"\n\n", 2, 5, 5)
    assert line_check(DATASET).are_rows_of(first + b"\n" + second + b"\n", 2, 5, 5)
    rejected = complete("store", [block(own)], table.ids, table.write)
    assert [(each.row, each.reason) for each in rejected] == [
        (0, "the line is not one object"),
        (1, "the line is not one object"),
    ]
    assert table.rows == {IDS[2]: 1}
