"""Writes block groups. The lines go to the server unchanged, and one write becomes one ClickHouse part."""

import re
from collections.abc import Sequence, Set
from functools import cached_property

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error
from clickhouse_connect.driver.summary import QuerySummary

from services.core.completion import complete
from services.core.dataset import Dataset
from services.core.errors import RowRejected, StoreDown
from services.core.ports import Block, group_token
from services.stores.clickhouse import STORE, attempts, tables
from services.stores.clickhouse.client import connect, translated
from services.stores.clickhouse.names import quoted
from services.stores.clickhouse.statements import insert_prefix

_TIMEOUT = 60  # seconds

# If these changed between two attempts, the server might split the same lines differently, and store them twice.
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

# The codes with which ClickHouse rejects a row: parsers' codes, too deep nesting (306), a violated CHECK (469). A row
# that causes another error, for instance in an operator's view, can be stored later.
_BAD_ROW = {6, 25, 26, 27, 33, 38, 41, 53, 69, 70, 72, 117, 131, 306, 349, 376, 441, 469}


# How ClickHouse ends the message about a line that it cannot parse, and about a row that violates a CHECK.
_AT_ROW = re.compile(r"(?:\(|violated )at row (\d{1,9})\b")


class ClickHouseWriter:
    """A SinkWriter, which connects at its first use."""

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
            "insert_deduplication_token": group_token(blocks),
            "query_id": attempts.query_id(blocks),
        }
        dataset, lines = blocks[0].dataset, b"".join(block.lines for block in blocks)
        insert = f"{insert_prefix(dataset)}{', '.join(map(quoted, dataset.column_names))})"
        try:
            with translated():
                # `raw_insert` is not used, because it sends the rows again after a lost connection without searching.
                reply = self._client.command(f"{insert} FORMAT JSONEachRow", data=lines, settings=settings)
        except StoreDown as error:
            cause = error.__cause__
            if isinstance(cause, Error) and cause.code in _BAD_ROW:
                found = _AT_ROW.search(str(cause))
                raise RowRejected(None, str(cause)[:500], near=int(found[1]) - 1 if found else None) from error
            raise
        if reply and not isinstance(reply, QuerySummary):  # an error after the headers of a reply with status 200
            raise StoreDown(STORE.name, str(reply)[:500])

    def complete(self, blocks: Sequence[Block]) -> Sequence[RowRejected]:
        def end_and_search(batches: Set[int]) -> Set[int]:
            attempts.end_attempts(self._client, blocks)
            return attempts.stored_ids_of_batches(self._client, blocks, batches)

        return complete(STORE.name, blocks, end_and_search, self.write)

    def stored_ids(self, dataset: Dataset, ids: Set[int]) -> Set[int]:
        return attempts.stored_on_any_day(self._client, dataset, ids)

    def end_writes(self, dataset: Dataset) -> None:
        attempts.end_inserts(self._client, dataset)
