"""Writes blocks: the NDJSON goes through as it is; what is written together is one part, once."""

import re
from collections.abc import Sequence
from functools import cached_property

from clickhouse_connect.driver.client import Client

from services.core.dataset import Dataset
from services.core.errors import RowRejected, StoreDown
from services.core.ports import Block, joint_token
from services.stores.clickhouse import tables
from services.stores.clickhouse.client import connect, translated

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
        dataset, lines = blocks[0].dataset, b"".join(block.lines for block in blocks)
        settings = {**_INSERT_SETTINGS, "insert_deduplication_token": joint_token(blocks)}
        try:
            with translated():
                self._client.raw_insert(dataset.name, dataset.column_names, lines, settings, "JSONEachRow")
        except StoreDown as error:
            # The last is ClickHouse's own word: a row's text may say it, too.
            rows = _AT_ROW.findall(str(error.__cause__))
            if rows and (place := _place(blocks, int(rows[-1]) - 1)):
                raise RowRejected(place[1], str(error), block=place[0]) from error
            raise


def _place(blocks: Sequence[Block], row: int) -> tuple[int, int] | None:
    """Which block, and which row of it, is `row` of all."""
    for number, block in enumerate(blocks):
        if 0 <= row < block.rows:
            return number, row
        row -= block.rows
    return None
