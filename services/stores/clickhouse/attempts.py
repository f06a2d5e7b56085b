"""Former attempts at an insert: this module ends them, and searches the table for their rows."""

import hashlib
from collections.abc import Iterator, Sequence, Set

import msgspec
from clickhouse_connect.driver.client import Client

from services.core.dataset import CREATED_AT, ID, Dataset
from services.core.errors import StoreDown
from services.core.ids import batch_of
from services.core.ports import Block, group_range
from services.stores.clickhouse import STORE
from services.stores.clickhouse.client import translated
from services.stores.clickhouse.names import quoted, stored_name
from services.stores.clickhouse.statements import among_ids_of, insert_prefix, select

_IDS_AT_ONCE = 2000  # ids of one query, whose text names each of them


def query_id(blocks: Sequence[Block]) -> str:
    """Return the query id of an insert. The ids of all attempts at the same messages have the same beginning."""
    return f"{_common_query_id(blocks)}-{blocks[0].attempt}"


def end_attempts(client: Client, blocks: Sequence[Block]) -> None:
    """Kill the inserts of the same messages that are still running, and wait for their end. Raises StoreDown."""
    _kill(client, _query_id_starts_with(_common_query_id(blocks)))


def end_inserts(client: Client, dataset: Dataset) -> None:
    """Kill all running inserts of the dataset's rows, and wait for their end. Raises StoreDown.

    Inserts are found by their statement, too: older releases gave them other query ids.
    """
    by_id = _query_id_starts_with(_query_id_prefix(dataset))
    _kill(client, f"{by_id} OR startsWith(query, '{insert_prefix(dataset)}')")


def stored_ids_of_batches(client: Client, blocks: Sequence[Block], batches: Set[int]) -> Set[int]:
    """Return the ids of these batches that are in the table, on the day of the blocks' rows. Raises StoreDown."""
    if not batches:
        return set()
    day = next(block.day for block in blocks if block.rows)
    on_day = f"toYYYYMMDD({stored_name(CREATED_AT)}) = toYYYYMMDD(toDate({day}))"
    # Foreign messages may name batches that are far apart. Then the ranges have ids of many other batches, too.
    found = _ids(client, blocks[0].dataset, f"{on_day} AND ({among_ids_of(batches)})")
    return {row_id for row_id in found if batch_of(row_id) in batches}


def stored_on_any_day(client: Client, dataset: Dataset, ids: Set[int]) -> Set[int]:
    """Return which of these ids are in the table. Raises StoreDown."""
    listed, found = sorted(ids), set[int]()
    for start in range(0, len(listed), _IDS_AT_ONCE):
        some = ", ".join(map(str, listed[start : start + _IDS_AT_ONCE]))
        found.update(_ids(client, dataset, f"{quoted(ID.name)} IN ({some})"))
    return found


def _ids(client: Client, dataset: Dataset, condition: str) -> Iterator[int]:
    query = select(quoted(ID.name), dataset, condition)
    with translated(), client.query_column_block_stream(query) as stream:
        for columns in stream:
            yield from columns[0]


def _common_query_id(blocks: Sequence[Block]) -> str:
    return _query_id_prefix(blocks[0].dataset) + hashlib.sha256(group_range(blocks).encode()).hexdigest()[:32]


def _query_id_prefix(dataset: Dataset) -> str:
    return f"insert-{dataset.name}-"


def _query_id_starts_with(beginning: str) -> str:
    return f"startsWith(query_id, '{beginning}')"


def _kill(client: Client, condition: str) -> None:
    kill = f"KILL QUERY WHERE {condition} SYNC"
    with translated():
        reply = client.raw_query(kill, fmt="JSONCompactEachRow")
    for line in reply.splitlines():
        status, *_ = msgspec.json.decode(line)
        if status != "finished":
            raise StoreDown(STORE.name, f"a former insert of the same rows still runs (KILL QUERY: {status})")
