"""Rows that are read back, in any order, are counted and summed by batch."""

from hypothesis import given
from hypothesis import strategies as st

from services.core.ids import batch_of, first_id
from services.core.ledger import Batch
from services.core.read_back import ReadBack
from services.core.rows import Row, RowCodec, checksum
from services.datasets.logs import DATASET

CODEC = RowCodec(DATASET)
ACCEPTED: dict[int, list[Row]] = {
    batch_id: [(first_id(batch_id) + n, 7, n, "INFO", "api", "", f"m{n}", "{}") for n in range(batch_id * 4)]
    for batch_id in (1, 2, 3)
}
LEDGER = [Batch(b, 0, DATASET.name, len(rows), checksum(CODEC.encode(rows)), 7) for b, rows in ACCEPTED.items()]


@given(st.permutations([row for rows in ACCEPTED.values() for row in rows]))
def test_rows_in_any_order_are_as_accepted(rows: list[Row]) -> None:
    back = ReadBack(CODEC)
    runs = list(back.runs(rows))
    assert [row for run in runs for row in run.rows] == rows
    assert [line for run in runs for line in run.lines] == CODEC.encode(rows)
    assert all(batch_of(row[0]) == run.batch_id for run in runs for row in run.rows)
    for batch in LEDGER:
        assert back.rows(batch.batch_id) == batch.rows
        assert back.is_as_accepted(batch)


def test_a_changed_row_and_a_missing_one_are_noticed() -> None:
    back = ReadBack(CODEC)
    back.count([*ACCEPTED[1][1:], (*ACCEPTED[2][0][:-1], '{"a":1}'), *ACCEPTED[2][1:]])
    assert [back.rows(batch_id) for batch_id in (1, 2, 3)] == [3, 8, 0]
    assert not any(back.is_as_accepted(batch) for batch in LEDGER)


def test_many_rows_are_read_in_several_runs() -> None:
    rows = [(first_id(5) + n, 7, n, "INFO", "api", "", "m", "{}") for n in range(25_000)]
    back = ReadBack(CODEC)
    assert max(len(run.lines) for run in back.runs(iter(rows))) < len(rows)
    assert back.is_as_accepted(Batch(5, 0, DATASET.name, len(rows), checksum(CODEC.encode(rows)), 7))
