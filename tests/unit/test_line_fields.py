"""The rules of a line's fields: the checks that are made from them refuse the same lines."""

import json

import pytest

from services.core.dataset import Dataset
from services.core.errors import RowRejected
from services.core.ids import MAX_BATCH_ROWS
from services.core.line_fields import line_fields
from services.core.lines import line_check
from services.core.ports import Block
from services.core.rows import RowCodec
from services.lake.lines import LineReader
from tests.line_rules import DATASETS, GOOD, bad, good


def lake_refuses(dataset: Dataset, line: bytes) -> bool:
    try:
        LineReader(dataset).table(Block(dataset, "t", 0, 0, 0, 0, 1, line + b"\n"))
    except RowRejected:
        return True
    return False


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_a_line_that_breaks_one_rule_is_refused_by_every_check(dataset: Dataset) -> None:
    valid = json.dumps(good(dataset)).encode()
    assert line_check(dataset).check([valid]).problems == {}
    assert not lake_refuses(dataset, valid)
    for name, line in bad(dataset):
        text = json.dumps(line).encode()
        assert line_check(dataset).check([text]).problems, (name, line)
        assert lake_refuses(dataset, text), (name, line)


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_a_line_without_its_optional_fields_is_a_row(dataset: Dataset) -> None:
    optional = {field.name: field.missing for field in line_fields(dataset) if not field.required}
    kept = {name: value for name, value in good(dataset).items() if name not in optional}
    for line in (kept, kept | dict.fromkeys(optional)):
        text = json.dumps(line).encode()
        assert line_check(dataset).check([text]).problems == {}
        table = LineReader(dataset).table(Block(dataset, "t", 0, 0, 0, 0, 1, text + b"\n"))
        assert {name: table[name][0].as_py() for name in optional} == optional


def test_the_fields_are_those_of_the_lines_that_are_written() -> None:
    for dataset in DATASETS:
        values = [GOOD.get(column.kind, "x") for column in dataset.columns]
        (line,) = RowCodec(dataset).encode([(MAX_BATCH_ROWS, 5, *values)])
        assert [field.name for field in line_fields(dataset)] == list(json.loads(line)) == list(dataset.column_names)
