"""The lake: a Delta table per dataset on HDFS, read inside this process by delta-rs and its engine, DataFusion.

Whoever writes a table leaves in each commit how far in the topic it has come (`Position`): the table alone says what
it holds, whatever became of the writer's checkpoint.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from threading import RLock, Thread
from typing import ClassVar, TypeVar

import msgspec
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError

from services.core.dataset import CREATED_AT, ID, Column, Dataset
from services.core.errors import Invalid, StoreDown
from services.core.ids import ROW_BITS, batch_of, end_id, first_id
from services.core.ports import Progress
from services.core.queries import AggregateQuestion, Answer, Filters, ListQuestion, Question, StatsQuestion
from services.core.rows import Row
from services.runtime.settings import LakeSettings

NAME = "lake"

_SECONDS = 30.0  # for one answer, or one piece of a longer one: the HDFS client may wait for a server for ever
_WINDOW = 512  # batches counted at once: bounds the ids held
_HISTORY = (1, 16, 256, None)  # commits looked through for the last position; maintenance leaves none

_DECORATION = re.compile(r"\x1b\[\d*m|↳")  # delta-rs prints its errors for a terminal

Result = TypeVar("Result")


class Position(msgspec.Struct, frozen=True):
    """How far a table has come: all of the topic below `offsets` (partition -> next) is in it, or in its rejects.

    Written by batch `batch`, from `start`, of the streaming query `query`. No query: nobody owns the table, and
    whoever comes next begins at `offsets`, or at the topic's beginning where it has none, once it has made sure of the
    rejects of the batch that reached `unfinished`.
    """

    topic_id: str
    offsets: dict[int, int]
    start: dict[int, int] = {}
    query: str = ""
    batch: int = -1
    unfinished: "Position | None" = None

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


class Table:
    """One Delta table, as of its latest commit at each call. Thread-safe; all raises StoreDown."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = RLock()
        self._table: DeltaTable | None = None
        self._position: tuple[int, Position | None] = (-1, None)  # and the version it was found at

    def engine(self) -> QueryBuilder | None:
        """One that knows the table, as it is now, as `t`; None when there is no table."""
        return within_limit(self._engine)

    def latest(self) -> DeltaTable | None:
        """Its handle, for the writer."""
        return within_limit(self._refresh)

    def position(self) -> Position | None:
        """None when no commit says one."""
        return within_limit(self._find_position)

    def _engine(self) -> QueryBuilder | None:
        with self._lock:
            table = self._refresh()
            return QueryBuilder().register("t", table) if table else None

    def _find_position(self) -> Position | None:
        with self._lock:
            if (table := self._refresh()) is None:
                return None
            known, position = self._position
            if table.version() != known:
                new = table.version() - known
                found = next(filter(None, (_last_position(table, limit, new) for limit in _HISTORY)), position)
                self._position = (table.version(), found)
            return self._position[1]

    def _refresh(self) -> DeltaTable | None:
        with self._lock:
            try:
                if self._table is None:
                    self._table = DeltaTable(self.uri)
                    self._position = (-1, None)
                else:
                    self._table.update_incremental()
            except TableNotFoundError:
                self._table = None
            except BaseException:
                self._table = None  # it may have been made anew
                raise
            return self._table


def _last_position(table: DeltaTable, limit: int | None, new: int) -> Position | None:
    """In the last `limit` commits, of which no more than `new` were not looked through before."""
    for commit in table.history(min(limit or new, new)):
        try:
            return msgspec.json.decode(commit.get("userMetadata", ""), type=Position)
        except msgspec.MsgspecError:
            continue
    return None


def table_uri(settings: LakeSettings, *names: str) -> str:
    return "/".join((settings.hdfs_url.rstrip("/") + settings.lake_path.rstrip("/"), *names))


def rejects_uri(settings: LakeSettings, dataset: Dataset) -> str:
    return table_uri(settings, "rejects", dataset.name)


def within_limit(work: Callable[[], Result]) -> Result:
    """`work`, in a thread that is given up on when it takes too long. Raises StoreDown."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            future.set_exception(error)

    Thread(target=run, daemon=True, name="lake").start()
    with _translated():
        return future.result(_SECONDS)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise StoreDown(NAME, f"no answer within {_SECONDS:.0f} s") from error
    except (DeltaError, pa.ArrowException, OSError) as error:
        raise StoreDown(NAME, " ".join(_DECORATION.sub(" ", str(error)).split())[:500]) from error


class LakeReader:
    """StoreReader; opens a table at its first use."""

    name: ClassVar[str] = NAME
    route: ClassVar[str] = "hdfs"
    source: ClassVar[str] = "hdfs"
    progress: ClassVar[Progress] = "own"

    def __init__(self, settings: LakeSettings) -> None:
        self._settings = settings
        self._tables: dict[str, Table] = {}

    def answer(self, question: Question, as_of: int) -> Answer:
        dataset = question.dataset
        filters = Filters() if isinstance(question, StatsQuestion) else question.filters
        where = _where(dataset, filters, as_of)
        start = time.perf_counter()
        engine = self._table(table_uri(self._settings, dataset.name)).engine()
        total = None
        match question:
            case ListQuestion():
                page = f"ORDER BY {_order(question)} LIMIT {question.limit:d} OFFSET {question.offset:d}"
                rows = list(_ask(engine, _select(_columns(dataset), where, page)))
                if question.count:
                    total = _count(engine, where)
            case AggregateQuestion():
                key = _value(dataset.by_name[question.group_by])
                rows = list(_ask(engine, _select(f"{key}, count(*)", where, f"GROUP BY {key} ORDER BY 2 DESC, 1")))
            case StatsQuestion():
                rows = [(_count(engine, where),)]
        return Answer(rows, (time.perf_counter() - start) * 1e3, total=total)

    def position(self, dataset: Dataset) -> Mapping[int, int]:
        found = self._table(table_uri(self._settings, dataset.name)).position()
        return found.offsets if found else {}

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        engine = self._table(table_uri(self._settings, dataset.name)).engine()
        batch = f"id >> {ROW_BITS}"
        what, grouped = f"{batch}, count(*), count(DISTINCT id)", f"GROUP BY {batch} ORDER BY 1"
        while engine and first <= last:
            window = min(last, first + _WINDOW - 1)
            found = list(_ask(engine, _select(what, _batches(first, window), grouped)))
            yield from ((batch_id, rows, ids) for batch_id, rows, ids in found)
            first = window + 1
            if not found:
                ((lowest,),) = _ask(engine, _select("min(id)", _batches(first, last)))
                first = last + 1 if lowest is None else batch_of(lowest)

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        engine = self._table(table_uri(self._settings, dataset.name)).engine()
        return _ask(engine, _select(_columns(dataset), _batches(first, last)))

    def rejected(self, dataset: Dataset) -> Mapping[int, int]:
        """Batch -> rows put aside instead of stored. Raises StoreDown."""
        engine = self._table(rejects_uri(self._settings, dataset)).engine()
        return dict(_ask(engine, _select("batch_id, sum(rows)", "batch_id IS NOT NULL", "GROUP BY batch_id")))

    def close(self) -> None:
        self._tables.clear()

    def _table(self, uri: str) -> Table:
        return self._tables.setdefault(uri, Table(uri))


def _ask(engine: QueryBuilder | None, query: str) -> Iterator[Row]:
    """Rows as they are read, a record batch at a time; none when there is no table."""
    if engine is None:
        return
    batches = within_limit(lambda: pa.RecordBatchReader.from_stream(engine.execute(query)))
    while (batch := within_limit(lambda: next(batches, None))) is not None:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _count(engine: QueryBuilder | None, where: str) -> int:
    return next((int(count) for (count,) in _ask(engine, _select("count(*)", where))), 0)


def _select(what: str, where: str, rest: str = "") -> str:
    """Names come from dataset descriptions, text through `literal`; the rest are integers."""
    return f"SELECT {what} FROM t WHERE {where} {rest}"  # noqa: S608


def _where(dataset: Dataset, filters: Filters, as_of: int) -> str:
    conditions = [f"id < {end_id(as_of):d}"]
    for name, value in filters.equals:
        column = dataset.by_name[name]
        # Without coalesce the files' statistics and dictionaries can be used; only '' may stand for NULL.
        left = _value(column) if value == "" else quoted(name)
        conditions.append(f"{left} = {literal(value)}")
    time_column = quoted(dataset.time)
    if filters.start is not None:
        conditions.append(f"{time_column} >= to_timestamp_micros({filters.start:d})")
    if filters.end is not None:
        conditions.append(f"{time_column} < to_timestamp_micros({filters.end:d})")
    return " AND ".join(conditions)


def _batches(first: int, last: int) -> str:
    return f"id >= {first_id(first):d} AND id < {end_id(last):d}"


def _order(question: ListQuestion) -> str:
    columns = {column.name: column for column in (ID, CREATED_AT, *question.dataset.columns)}
    direction = "DESC" if question.descending else "ASC"
    return ", ".join(f"{_value(columns[name])} {direction}" for name in dict.fromkeys((question.order_by, ID.name)))


def _columns(dataset: Dataset) -> str:
    """All columns, in canonical order and form."""
    return ", ".join([ID.name, *map(_canonical, (CREATED_AT, *dataset.columns))])


def _canonical(column: Column) -> str:
    return f"arrow_cast({quoted(column.name)}, 'Int64')" if column.kind == "timestamp" else _value(column)


def _value(column: Column) -> str:
    """A column that was added later reads NULL in older files, and means the same as a missing value."""
    if column.kind in ("timestamp", "number"):
        return quoted(column.name)
    return f"coalesce({quoted(column.name)}, {literal('{}' if column.kind == 'json' else '')})"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as an SQL literal, the only way of a value into a query: the engine has no parameters."""
    if "\x00" in text:
        raise Invalid("the character NUL stands in no row")
    return "'" + text.replace("'", "''") + "'"


def open_reader() -> LakeReader:
    return LakeReader(LakeSettings())
