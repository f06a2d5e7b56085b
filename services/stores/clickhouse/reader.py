"""Reads what is stored; one client for all threads."""

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import ClassVar

from clickhouse_connect.driver.client import Client

from services.core.dataset import CREATED_AT, Dataset
from services.core.ids import ROW_BITS, end_id, first_id
from services.core.instants import to_datetime
from services.core.ledger import Batch, StorePosition
from services.core.ports import QUESTION_SECONDS, Progress
from services.core.queries import Answer, Question
from services.core.rows import Row
from services.stores.clickhouse import questions, tables
from services.stores.clickhouse.client import NAME, connect, translated
from services.stores.clickhouse.questions import columns, select
from services.stores.clickhouse.tables import stored

_TIMEOUT = 660  # seconds, longer than any question may take: the server ends those

_BATCHES = "id >= {start:Int64} AND id < {end:Int64}"


class ClickHouseReader:
    """StoreReader; connects at its first use, one client for all threads."""

    name: ClassVar[str] = NAME
    route: ClassVar[str] = "clickhouse"
    source: ClassVar[str] = "clickhouse"
    engine: ClassVar[str] = ""
    progress: ClassVar[Progress] = "sink"

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

    def answer(self, question: Question, as_of: int, seconds: float = QUESTION_SECONDS) -> Answer:
        asked = questions.Asked(self._client, seconds, scan=question.scan)
        return questions.answer(asked, question, as_of)

    def position(self, dataset: Dataset) -> StorePosition:
        raise NotImplementedError("ClickHouse's progress is in sink_progress")

    def table_id(self, dataset: Dataset) -> str:
        return tables.table_id(self._client, dataset)

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        what = f"bitShiftRight(id, {ROW_BITS}) AS batch, count(), uniqExact(id)"
        yield from self._stream(select(what, dataset, _BATCHES, "GROUP BY batch ORDER BY batch"), first, last)

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        yield from self._stream(select(columns(dataset), dataset, _BATCHES), first, last)

    def rows_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[Row]:
        """One query, whose conditions leave out the parts of other days and of other ids."""
        days = {to_datetime(batch.created_at).date() for batch in batches}
        ids = (f"id >= {first_id(b.batch_id):d} AND id < {end_id(b.batch_id):d}" for b in batches)
        where = f"toDate({stored(CREATED_AT)}) IN {{days:Array(Date)}} AND ({' OR '.join(ids)})"
        with (
            translated(),
            self._client.query_rows_stream(select(columns(dataset), dataset, where), {"days": sorted(days)}) as rows,
        ):
            yield from map(tuple, rows)

    def close(self) -> None:
        if self._connected is not None:
            self._connected.close()

    def _stream(self, query: str, first: int, last: int) -> Iterator[Row]:
        bounds = {"start": first_id(first), "end": end_id(last)}
        with translated(), self._client.query_rows_stream(query, bounds) as rows:
            for row in rows:
                yield tuple(row)
