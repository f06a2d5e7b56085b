"""Writes blocks. The NDJSON of the blocks goes to the server unchanged; blocks that come together become one part."""

import re
from collections.abc import Sequence, Set
from functools import cached_property

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error
from clickhouse_connect.driver.summary import QuerySummary

from services.core.completion import complete
from services.core.dataset import Dataset
from services.core.errors import RowRejected, StoreDown
from services.core.ports import Block, joint_token
from services.stores.clickhouse import attempts, tables
from services.stores.clickhouse.client import NAME, connect, translated

_TIMEOUT = 60  # seconds

# Changed between two attempts, these would cut the same block differently and store it twice.
_INSERT_SETTINGS = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "input_format_parallel_parsing": 0,
    "max_insert_threads": 1,
    "max_insert_block_size": 1 << 24,
    "input_format_json_read_arrays_as_strings": 0,
    "input_format_json_read_bools_as_strings": 0,
    "input_format_json_read_numbers_as_strings": 0,
    "input_format_json_read_objects_as_strings": 0,
}

_VIOLATED_CONSTRAINT = 469
# The codes by which ClickHouse refuses the text of a row. Rows that raise others may be stored later.
_BAD_ROW = {6, 26, 27, 33, 38, 41, 53, 69, 70, 72, 117, 131, 349, 376, 441, _VIOLATED_CONSTRAINT}
_AT_ROW = re.compile(r"\bat row (\d+)\b")


class ClickHouseWriter:
    """StoreWriter; connects at its first use."""

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def _client(self) -> Client:
        return connect(self._url, _TIMEOUT)

    def prepare(self, dataset: Dataset) -> None:
        tables.prepare(self._client, dataset)

    def write(self, blocks: Sequence[Block]) -> None:
        if not any(block.rows for block in blocks):
            return
        settings = {
            **_INSERT_SETTINGS,
            "insert_deduplication_token": joint_token(blocks),
            "query_id": attempts.query_id(blocks),
        }
        dataset, lines = blocks[0].dataset, b"".join(block.lines for block in blocks)
        insert = f"{tables.insert_into(dataset)}{', '.join(map(tables.quoted, dataset.column_names))})"
        try:
            with translated():
                # `raw_insert` is not used: it sends the rows again after a lost connection, without a look.
                reply = self._client.command(f"{insert} FORMAT JSONEachRow", data=lines, settings=settings)
        except StoreDown as error:
            cause = error.__cause__
            if isinstance(cause, Error) and cause.code in _BAD_ROW:
                raise _rejected(blocks, cause.code, str(cause)) from error
            raise
        if reply and not isinstance(reply, QuerySummary):  # an error that follows the headers of a 200
            raise StoreDown(NAME, str(reply)[:500])

    def complete(self, blocks: Sequence[Block]) -> Sequence[RowRejected]:
        def stored_ids() -> Set[int]:
            attempts.end(self._client, blocks)
            return attempts.stored_ids(self._client, blocks)

        return complete(NAME, blocks, stored_ids, self.write)

    def end_writes(self, dataset: Dataset) -> None:
        attempts.end_all(self._client, dataset)


def _rejected(blocks: Sequence[Block], code: int, message: str) -> RowRejected:
    """The text of a row may contain "at row", too: a parser puts its own words last, a constraint puts them first."""
    rows = [int(row) - 1 for row in _AT_ROW.findall(message)]
    place = _place(blocks, rows[0 if code == _VIOLATED_CONSTRAINT else -1]) if rows else None
    if place is None:
        return RowRejected(None, message[:500])
    return RowRejected(place[1], message[:500], block=place[0])


def _place(blocks: Sequence[Block], row: int) -> tuple[int, int] | None:
    """Return the number of the block that holds row `row` of all blocks, and the row's number in the block."""
    for number, block in enumerate(blocks):
        if 0 <= row < block.rows:
            return number, row
        row -= block.rows
    return None
