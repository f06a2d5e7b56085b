"""Turns the lines of a block into the columns of its dataset's table, by pyarrow: no row is a Python object.

A line is valid when it is a JSON object whose fields keep the rules of `core.line_fields`.
"""

from collections.abc import Sequence
from io import BytesIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.json import ParseOptions, ReadOptions, read_json

from services.core import instants, kafka_value
from services.core.dataset import CREATED_AT, Dataset
from services.core.errors import RowRejected
from services.core.line_fields import LineField, line_fields
from services.core.lines import line_check
from services.core.ports import Block
from services.lake.schema import DAY, table_schema

_PARSED_AT_ONCE = 4 << 20  # bytes: the longest line must fit
_TYPES = {"integer": pa.int64(), "number": pa.float64(), "text": pa.string()}


class LineReader:
    """Reads the lines of one dataset. It is stateless after construction."""

    def __init__(self, dataset: Dataset) -> None:
        self._check_lines = line_check(dataset).check
        self._fields = line_fields(dataset)
        self._missing = {field.name: field.missing for field in self._fields if field.missing is not None}
        self.schema = pa.schema(table_schema(dataset))
        self._options = ParseOptions(
            explicit_schema=pa.schema([(field.name, _TYPES[field.type]) for field in self._fields]),
            unexpected_field_behavior="ignore",  # of a newer description than this process has
        )

    def table(self, block: Block) -> pa.Table:
        """Return the rows of `block`, in the form of the dataset's table. Raises RowRejected."""
        try:
            return self._table(block.lines, block.rows)
        except _InvalidLine as error:
            raise RowRejected(None, str(error)) from error

    def rejected(self, block: Block) -> dict[int, str]:
        """Return the invalid lines of `block`, with reasons: those of `core.lines`, then those that pyarrow refuses.

        pyarrow refuses lines as a whole, so the lines are halved until each refused line stands alone.
        """
        lines = kafka_value.split(block.lines)
        rejected = self._check_lines(lines).problems
        halves = [[at for at in range(len(lines)) if at not in rejected]]
        while halves:
            half = halves.pop()
            problem = self._problem([lines[at] for at in half])
            if problem and len(half) == 1:
                rejected[half[0]] = problem
            elif problem:
                middle = len(half) // 2
                halves += [half[middle:], half[:middle]]
        return rejected

    def rejections(self, blocks: Sequence[Block]) -> list[RowRejected]:
        """Return the invalid rows of all `blocks`, in order."""
        return [
            RowRejected(row, reason, block=number)
            for number, block in enumerate(blocks)
            for row, reason in sorted(self.rejected(block).items())
        ]

    def _problem(self, lines: Sequence[bytes]) -> str:
        try:
            self._table(kafka_value.join(lines), len(lines))
        except _InvalidLine as error:
            return str(error)
        return ""

    def _table(self, lines: bytes, rows: int) -> pa.Table:
        found = self._parsed(lines)
        if found.num_rows != rows:
            raise _InvalidLine("not one JSON object")
        if rows:
            self._check(found)
        day = pc.divide(found[CREATED_AT.name], instants.DAY).cast(pa.int32()).cast(pa.date32())
        for name, missing in self._missing.items():
            if found[name].null_count:
                found = found.set_column(found.schema.get_field_index(name), name, found[name].fill_null(missing))
        return found.append_column(DAY, day).select(self.schema.names).cast(self.schema)

    def _parsed(self, lines: bytes) -> pa.Table:
        if not lines:
            return self._options.explicit_schema.empty_table()
        try:
            if not lines.isascii():
                lines.decode()  # pyarrow takes any bytes for a text
            return read_json(BytesIO(lines), ReadOptions(block_size=_PARSED_AT_ONCE), self._options)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise _InvalidLine(str(error)) from error

    def _check(self, found: pa.Table) -> None:
        for field in self._fields:
            if field.required and found[field.name].null_count:
                raise _InvalidLine(f"{field.name} is missing")
        for field in self._fields:
            _check_values(field, found[field.name])


def _check_values(field: LineField, values: pa.ChunkedArray) -> None:
    """Raise _InvalidLine for a wrong value. A null passes: the field is optional, or was reported as missing before."""
    if limits := field.limits:
        found = pc.min_max(values).as_py()
        if found["min"] < limits.lowest or found["max"] > limits.highest:
            raise _InvalidLine(f"{field.name} {limits.problem}")
    if field.max_characters is not None and (pc.max(pc.utf8_length(values)).as_py() or 0) > field.max_characters:
        raise _InvalidLine(f"{field.name} has more than {field.max_characters} characters")
    if field.pattern is not None and pc.all(pc.match_substring_regex(values, field.pattern)).as_py() is False:
        raise _InvalidLine(f"{field.name} does not match {field.pattern}")


class _InvalidLine(Exception):
    """One of these lines, or several, are not valid."""
