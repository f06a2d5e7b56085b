"""Reads the stored rows, and runs queries."""

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import ClassVar, Literal

from clickhouse_connect.driver.client import Client

from services.core.dataset import CREATED_AT, Dataset
from services.core.ids import ROW_BITS, end_id, first_id
from services.core.instants import to_datetime
from services.core.ledger import Batch
from services.core.ports import DEFAULT_QUERY_SECONDS
from services.core.queries import Query, QueryResult
from services.core.rows import Row
from services.core.stopping import Stop
from services.stores.clickhouse import STORE, queries, tables
from services.stores.clickhouse.client import connect, translated
from services.stores.clickhouse.names import stored_name
from services.stores.clickhouse.statements import among_ids_of, columns, select

_TIMEOUT = 660  # seconds, more than any query may take, because the server ends queries

_BATCHES = "id >= {start:Int64} AND id < {end:Int64}"
_BATCH = f"bitShiftRight(id, {ROW_BITS})"
_COUNTS = f"{_BATCH} AS batch, count(), uniqExact(id)"
_BY_BATCH = "GROUP BY batch ORDER BY batch"
_AT_ONCE = 1000  # batches of one query, whose text names each of them


class ClickHouseReader:
    """A SinkReader, which connects at its first use. All threads share one client."""

    name: ClassVar[str] = STORE.name
    progress: ClassVar[Literal["sink"]] = "sink"

    def __init__(self, url: str) -> None:
        self._url = url
        self._connecting = Lock()
        self._connected: Client | None = None

    @property
    def _client(self) -> Client:
        with self._connecting:
            if self._connected is None:
                self._connected = connect(self._url, _TIMEOUT)
            return self._connected

    def execute(
        self, query: Query, as_of: int, seconds: float = DEFAULT_QUERY_SECONDS, stop: Stop | None = None
    ) -> QueryResult:
        return queries.run(queries.Execution(self._client, seconds, stop, scan=query.scan), query, as_of)

    def table_id(self, dataset: Dataset) -> str:
        return tables.table_id(self._client, dataset)

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        yield from self._batches_between(select(_COUNTS, dataset, _BATCHES, _BY_BATCH), first, last)

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        yield from self._batches_between(select(columns(dataset), dataset, _BATCHES), first, last)

    def counts_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[tuple[int, int, int]]:
        for at in range(0, len(batches), _AT_ONCE):
            yield from self._stream(select(_COUNTS, dataset, _any_of(batches[at : at + _AT_ONCE]), _BY_BATCH), {})

    def rows_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[Row]:
        for at in range(0, len(batches), _AT_ONCE):
            yield from self._stream(select(columns(dataset), dataset, _any_of(batches[at : at + _AT_ONCE])), {})

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()

    def _batches_between(self, statement: str, first: int, last: int) -> Iterator[Row]:
        return self._stream(statement, {"start": first_id(first), "end": end_id(last)})

    def _stream(self, statement: str, parameters: dict[str, int]) -> Iterator[Row]:
        with translated(), self._client.query_rows_stream(statement, parameters) as rows:
            for row in rows:
                yield tuple(row)


def _any_of(batches: Sequence[Batch]) -> str:
    """Return the condition for rows of these batches. It also excludes the ClickHouse parts of other days and ids."""
    days = sorted({to_datetime(batch.created_at).date().isoformat() for batch in batches})
    listed = ", ".join(f"toDate('{day}')" for day in days)
    ids = among_ids_of({batch.batch_id for batch in batches})
    each = ", ".join(str(int(batch.batch_id)) for batch in batches)
    return f"toDate({stored_name(CREATED_AT)}) IN ({listed}) AND ({ids}) AND {_BATCH} IN ({each})"
