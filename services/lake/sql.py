"""Queries as SQL, which is the same for every engine of the lake except for the engine's `Dialect`.

Names come from dataset descriptions, text goes through `Dialect.text`, and all else is integers. A column that was
added later reads NULL in older files, or is not yet in the table; both mean the same as a missing value.
"""
# ruff: noqa: S608 - see above

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.core.dataset import CREATED_AT, ID, Column, Dataset
from services.core.ids import ROW_BITS, batch_ranges, end_id, first_id
from services.core.instants import to_datetime
from services.core.ledger import Batch
from services.core.queries import AggregateQuery, Filters, ListQuery
from services.core.result_size import MAX_GROUPS
from services.lake.schema import DAY
from services.lake.snapshot import FileConditions

_COUNTS = f"{ID.name} >> {ROW_BITS}, count(*), count(DISTINCT {ID.name})"
_BY_BATCH = "GROUP BY 1 ORDER BY 1"
_MOST_RANGES = 50  # of ids in one statement


Place = tuple[str | int, int]
"""The place of a row in a sort order: its value and its id."""


class Dialect(Protocol):
    """How an engine spells SQL; a new one for each statement. `table` follows FROM. `text` collects `parameters`."""

    @property
    def table(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, str]: ...

    def name(self, name: str) -> str:
        """Return a name as an identifier."""

    def text(self, value: str) -> str:
        """Return a value as a literal, or as a parameter of the statement."""

    def instant(self, microseconds: int) -> str:
        """Return the time that is this many microseconds after 1970."""

    def microseconds(self, time: str) -> str:
        """Return the microseconds from 1970 to a time."""

    def contains(self, text: str, searched: str) -> str:
        """Return the condition that the value `text` contains the value `searched`."""


@dataclass(frozen=True, slots=True)
class Statement:
    """`file_conditions`: see `FileConditions`. `is_wide`: the statement reads texts, which may be long."""

    text: str
    parameters: Mapping[str, str]
    file_conditions: FileConditions
    is_wide: bool


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders one statement about `dataset`, for a table that has `columns`."""

    dataset: Dataset
    columns: frozenset[str]
    dialect: Dialect

    def page(self, query: ListQuery, as_of: int) -> Statement:
        return self._page(query, as_of, self._canonical_columns(), is_wide=True)

    def places(self, query: ListQuery, as_of: int) -> Statement:
        """Select (value of `order_by`, id) of each row of the page."""
        value = self._canonical(self._column(query.order_by))
        return self._page(query, as_of, f"{value} AS place, {ID.name}", is_wide=bool(query.filters.text))

    def between(self, query: ListQuery, as_of: int, first: Place, last: Place) -> Statement:
        """Select the rows from the place `first` to the place `last`, in any order."""
        step = 1 if query.descending else -1
        before, behind = (first[0], first[1] + step), (last[0], last[1] - step)
        where = [
            self._where(query.filters, as_of),
            self._after(query.order_by, query.descending, before),
            self._after(query.order_by, not query.descending, behind),
        ]
        file_conditions = [
            *self._file_conditions(query.filters, as_of),
            *self._beyond(query.order_by, query.descending, before),
            *self._beyond(query.order_by, not query.descending, behind),
        ]
        return self._select(self._canonical_columns(), " AND ".join(where), file_conditions, is_wide=True)

    def _page(self, query: ListQuery, as_of: int, what: str, *, is_wide: bool) -> Statement:
        where, file_conditions = self._where(query.filters, as_of), self._file_conditions(query.filters, as_of)
        if query.after:
            where += f" AND {self._after(query.order_by, query.descending, query.after)}"
            file_conditions = [*file_conditions, *self._beyond(query.order_by, query.descending, query.after)]
        direction = "DESC" if query.descending else "ASC"
        order = ", ".join(f"{self._value(name)} {direction}" for name in dict.fromkeys((query.order_by, ID.name)))
        rest = f"ORDER BY {order} LIMIT {query.limit:d} OFFSET {query.offset:d}"
        return self._select(what, where, file_conditions, rest, is_wide=is_wide)

    def groups(self, query: AggregateQuery, as_of: int) -> Statement:
        keys = []
        if query.bucket:
            time = self.dialect.microseconds(self.dialect.name(self.dataset.time))
            keys.append(f"{time} - {time} % {query.bucket:d}")
        if query.group_by:
            keys.append(self._value(query.group_by))
        places = ", ".join(str(place + 1) for place in range(len(keys)))
        order = places if query.bucket else f"{len(keys) + 1} DESC, {places}"
        return self._select(
            ", ".join([*keys, "count(*)"]),
            self._where(query.filters, as_of),
            self._file_conditions(query.filters, as_of),
            f"GROUP BY {places} ORDER BY {order} LIMIT {MAX_GROUPS + 1:d}",
            is_wide=bool(query.filters.text),
        )

    def count(self, filters: Filters, as_of: int) -> Statement:
        where, file_conditions = self._where(filters, as_of), self._file_conditions(filters, as_of)
        return self._select("count(*)", where, file_conditions, is_wide=bool(filters.text))

    def count_beyond(self, as_of: int) -> Statement:
        """Count the rows that a query as of this batch must not see."""
        return self._select("count(*)", f"{ID.name} >= {end_id(as_of):d}", [(ID.name, end_id(as_of), None)])

    def batches(self, first: int, last: int) -> Statement:
        """Select (batch, rows, distinct ids) of each batch that is found."""
        return self._batches_between(_COUNTS, first, last, _BY_BATCH)

    def counts_of(self, batches: Sequence[Batch]) -> Statement:
        """Select (batch, rows, distinct ids) of each batch that is found."""
        return self._any_of(_COUNTS, batches, _BY_BATCH)

    def lowest(self, first: int, last: int) -> Statement:
        """Select the lowest id within these batches, or NULL."""
        return self._batches_between(f"min({ID.name})", first, last)

    def rows(self, first: int, last: int) -> Statement:
        return self._batches_between(self._canonical_columns(), first, last)

    def rows_of(self, batches: Sequence[Batch]) -> Statement:
        return self._any_of(self._canonical_columns(), batches)

    def _any_of(self, what: str, batches: Sequence[Batch], rest: str = "") -> Statement:
        days = sorted({to_datetime(batch.created_at).date().isoformat() for batch in batches})
        listed = ", ".join(f"DATE '{day}'" for day in days)
        ranges = batch_ranges({batch.batch_id for batch in batches}, _MOST_RANGES)
        ids = " OR ".join(
            f"({ID.name} >= {first_id(first):d} AND {ID.name} < {end_id(last):d})" for first, last in ranges
        )
        each = ", ".join(f"{batch.batch_id:d}" for batch in batches)
        where = f"{DAY} IN ({listed}) AND ({ids}) AND {ID.name} >> {ROW_BITS} IN ({each})"
        return self._select(what, where, [(ID.name, first_id(ranges[0][0]), end_id(ranges[-1][1]))], rest)

    def _batches_between(self, what: str, first: int, last: int, rest: str = "") -> Statement:
        least, beyond = first_id(first), end_id(last)
        where = f"{ID.name} >= {least:d} AND {ID.name} < {beyond:d}"
        return self._select(what, where, [(ID.name, least, beyond)], rest)

    def _select(
        self, what: str, where: str, file_conditions: FileConditions, rest: str = "", *, is_wide: bool = False
    ) -> Statement:
        text = f"SELECT {what} FROM {self.dialect.table} WHERE {where} {rest}"
        return Statement(text, self.dialect.parameters, file_conditions, is_wide)

    def _file_conditions(self, filters: Filters, as_of: int) -> FileConditions:
        return [(ID.name, None, end_id(as_of)), (self.dataset.time, filters.start, filters.end)]

    def _where(self, filters: Filters, as_of: int) -> str:
        conditions = [f"{ID.name} < {end_id(as_of):d}"]
        for name, value in filters.equals:
            # Without coalesce the engine can use the files' statistics and dictionaries. Only '' can mean NULL.
            left = self._value(name) if value == "" or name not in self.columns else self.dialect.name(name)
            conditions.append(f"{left} = {self.dialect.text(value)}")
        time = self.dialect.name(self.dataset.time)
        if filters.start is not None:
            conditions.append(f"{time} >= {self.dialect.instant(filters.start)}")
        if filters.end is not None:
            conditions.append(f"{time} < {self.dialect.instant(filters.end)}")
        if filters.text:
            searched = self._value(self.dataset.search) if self.dataset.search else "''"
            conditions.append(self.dialect.contains(searched, self.dialect.text(filters.text)))
        return " AND ".join(conditions)

    def _after(self, order_by: str, descending: bool, place: Place) -> str:
        """Return the condition for rows beyond a place. Its first part is redundant, but statistics can decide it."""
        last, last_id = place
        kind = self._column(order_by).kind
        if isinstance(last, str):
            value = self.dialect.text(last)
        else:
            value = self.dialect.instant(last) if kind == "timestamp" else str(last)
        column, later = self._value(order_by), "<" if descending else ">"
        return f"{column} {later}= {value} AND ({column} {later} {value} OR {ID.name} {later} {last_id:d})"

    def _beyond(self, order_by: str, descending: bool, place: Place) -> FileConditions:
        """Return the conditions in `_after` that the statistics of files can decide."""
        last, _ = place
        if not isinstance(last, int):
            return []
        others = 0 if order_by == ID.name else 1  # rows may have the same value
        return [(order_by, None, last + others) if descending else (order_by, last + 1 - others, None)]

    def _canonical_columns(self) -> str:
        """Return the expressions that select all columns in canonical order and form."""
        return ", ".join(map(self._canonical, (ID, CREATED_AT, *self.dataset.columns)))

    def _canonical(self, column: Column) -> str:
        value = self._value(column.name)
        return self.dialect.microseconds(value) if column.kind == "timestamp" else value

    def _value(self, name: str) -> str:
        kind = self._column(name).kind
        value = self.dialect.name(name) if name in self.columns else "NULL"
        if kind in ("timestamp", "number"):
            return value
        return f"coalesce({value}, {self.dialect.text('{}' if kind == 'json' else '')})"

    def _column(self, name: str) -> Column:
        return {ID.name: ID, CREATED_AT.name: CREATED_AT}.get(name) or self.dataset.by_name[name]
