"""From the lines of a block to the columns of its dataset's table, by pyarrow: no row is touched in Python.

A line is sound when it is a JSON object with an id, times, and all that its dataset requires, each of its type.
"""

from collections.abc import Sequence
from io import BytesIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.json import ParseOptions, ReadOptions, read_json

from services.core import instants, kafka_value
from services.core.dataset import CREATED_AT, ID, MAX_CATEGORY_CHARACTERS, Dataset
from services.core.errors import RowRejected
from services.core.ids import MAX_BATCH_ROWS
from services.core.lines import line_check
from services.core.ports import Block
from services.lake.schema import DAY, table_schema

_PARSED_AT_ONCE = 4 << 20  # bytes: the longest line must fit
_LINE_TYPES = {"timestamp": pa.int64(), "number": pa.float64()}
_UUID = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


class LineReader:
    """Of one dataset. Stateless after construction."""

    def __init__(self, dataset: Dataset) -> None:
        columns = (CREATED_AT, *dataset.columns)
        self._check_lines = line_check(dataset).check
        self._bounded = [column.name for column in dataset.bounded]
        self.schema = pa.schema(table_schema(dataset))
        self._times = [column.name for column in columns if column.kind == "timestamp"]
        self._required = [ID.name, *self._times, *(column.name for column in columns if column.required)]
        self._uuids = [column.name for column in columns if column.kind == "uuid"]
        self._missing = {
            column.name: "{}" if column.kind == "json" else ""
            for column in columns
            if column.kind not in _LINE_TYPES and not column.required
        }
        fields = [(column.name, _LINE_TYPES.get(column.kind, pa.string())) for column in columns]
        self._options = ParseOptions(
            explicit_schema=pa.schema([(ID.name, pa.int64()), *fields]),
            unexpected_field_behavior="ignore",  # of a newer description than this process has
        )

    def table(self, block: Block) -> pa.Table:
        """The rows of `block`, in the form of the dataset's table. Raises RowRejected."""
        try:
            return self._table(block.lines, block.rows)
        except _Unsound as error:
            raise RowRejected(None, str(error)) from error

    def refused(self, block: Block) -> dict[int, str]:
        """The rows of `block` that are not sound, and why: by our own check of lines, then by halves of the others."""
        lines = kafka_value.split(block.lines)
        refused = self._check_lines(lines).problems
        groups = [[at for at in range(len(lines)) if at not in refused]]
        while groups:
            group = groups.pop()
            problem = self._problem([lines[at] for at in group])
            if problem and len(group) == 1:
                refused[group[0]] = problem
            elif problem:
                middle = len(group) // 2
                groups += [group[middle:], group[:middle]]
        return refused

    def _problem(self, lines: Sequence[bytes]) -> str:
        try:
            self._table(kafka_value.join(lines), len(lines))
        except _Unsound as error:
            return str(error)
        return ""

    def _table(self, lines: bytes, rows: int) -> pa.Table:
        found = self._parsed(lines)
        if found.num_rows != rows:
            raise _Unsound("not one JSON object")
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
            lines.isascii() or lines.decode()  # pyarrow takes any bytes for a text
            return read_json(BytesIO(lines), ReadOptions(block_size=_PARSED_AT_ONCE), self._options)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise _Unsound(str(error)) from error

    def _check(self, found: pa.Table) -> None:
        for name in self._required:
            if found[name].null_count:
                raise _Unsound(f"{name} is missing")
        if pc.min(found[ID.name]).as_py() < MAX_BATCH_ROWS:
            raise _Unsound(f"{ID.name} is too low")
        for name in self._times:
            bounds = pc.min_max(found[name]).as_py()
            if bounds["min"] < 0 or bounds["max"] >= instants.LAST_INSTANT:
                raise _Unsound(f"{name} is not between 1970 and 2100")
        for name in self._bounded:
            if (pc.max(pc.utf8_length(found[name])).as_py() or 0) > MAX_CATEGORY_CHARACTERS:
                raise _Unsound(f"{name} has more than {MAX_CATEGORY_CHARACTERS} characters")
        for name in self._uuids:
            if not pc.all(pc.match_substring_regex(found[name], _UUID)).as_py():
                raise _Unsound(f"{name} is not a UUID")


class _Unsound(Exception):
    """Something in these lines is not sound."""
