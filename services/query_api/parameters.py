"""The URL parameters of one dataset, made from its description, and the queries that they describe."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from services.core.dataset import Column, Dataset
from services.core.errors import Invalid
from services.core.instants import LAST_INSTANT, of_bound
from services.core.queries import BUCKETS, AggregateQuery, Filters, ListQuery, Query, StatsQuery
from services.query_api.cursor import Cursor

MAX_LIMIT = 10_000
MAX_OFFSET = 10_000
"""A store sorts all rows before an offset; a cursor continues without sorting them."""

Model = TypeVar("Model", bound=BaseModel)

_TEXT = "q"
Bucket = Literal["1m", "1h", "1d"]
AsOf = int | None
"""The batch as of which the client wants the result, None for the latest."""


_LOST_PLUS = re.compile(r"([-\dW]+[Tt ][\d:.,]+) (\d\d(?::?\d\d)?)", re.ASCII)


def _microseconds(value: str) -> int:
    return of_bound(_with_plus(value))


def _with_plus(value: str) -> str:
    """Put back the plus sign of `...T10:00:00 02:00`: an unescaped plus sign in a query string is read as a space."""
    found = _LOST_PLUS.fullmatch(value)
    return "+".join(found.groups()) if found else value


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("contains the character NUL")
    return value


def _refuse_deep(offset: int) -> int:
    if offset > MAX_OFFSET:
        raise ValueError(f"at most {MAX_OFFSET}; go on from page to page with cursor, the next_cursor of a reply")
    return offset


_Offset = Annotated[int, Field(ge=0, json_schema_extra={"maximum": MAX_OFFSET}), AfterValidator(_refuse_deep)]
_Instant = Annotated[
    int,
    BeforeValidator(_microseconds),
    WithJsonSchema({"type": "string", "examples": ["1763700000.5", "2026-11-21T10:00:00Z"]}),
]
_Text = Annotated[str, AfterValidator(_without_nul)]
_Uuid = Annotated[UUID, AfterValidator(str)]


class Parameters(BaseModel):
    """The parameters of every query."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)

    as_of: int | None = Field(None, ge=0, description="query the batches up to this one; default: up to the latest")
    method: Literal["auto", "scan"] = Field(
        "auto", description="`scan`: read the rows themselves, so that the durations of queries can be compared"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, sent: Mapping[str, Any]) -> Mapping[str, Any]:
        allowed = [field.alias or name for name, field in cls.model_fields.items()]
        if unknown := sorted(set(sent).difference(allowed, cls.model_fields)):
            told = {"unknown": ", ".join(unknown), "allowed": ", ".join(allowed)}
            raise PydanticCustomError("unknown_parameter", "unknown: {unknown}; there are: {allowed}", told)
        return sent

    @property
    def scan(self) -> bool:
        return self.method == "scan"


class FilteredParameters(Parameters):
    """The parameters of a query of some rows; `make_model` adds those of the dataset's filters."""

    start_time: _Instant | None = Field(None, description="rows at or after: ISO 8601, or a number since 1970")
    end_time: _Instant | None = Field(None, description="rows before: ISO 8601, or a number since 1970")

    def filters(self, dataset: Dataset) -> Filters:
        start, end = self.start_time, self.end_time
        if start is not None and end is not None and end < start:
            raise Invalid("end_time is before start_time")
        sent = ((name, getattr(self, _filter_name(dataset, dataset.by_name[name]))) for name in dataset.filters)
        equals = tuple((name, value) for name, value in sent if value is not None)
        return Filters(equals, _clamped(start), _clamped(end), (dataset.search and getattr(self, _TEXT)) or "")


class ListParameters(FilteredParameters):
    limit: int = Field(100, ge=1, le=MAX_LIMIT)
    offset: _Offset = 0
    cursor: str | None = Field(
        None, description="next_cursor of the previous page: a deep page costs as much as the first"
    )
    order_by: str
    order_dir: Literal["desc", "asc"] = "desc"
    count: Literal["exact", "none"] = Field("exact", description="`none` leaves out total_count, which costs a scan")

    def listed(self, dataset: Dataset) -> tuple[ListQuery, AsOf]:
        query = ListQuery(
            dataset,
            self.filters(dataset),
            _column_name(dataset, self.order_by),
            self.order_dir == "desc",
            self.limit,
            self.offset,
            self.count == "exact",
            scan=self.scan,
        )
        return (query, self.as_of) if self.cursor is None else self._continued(query, self.cursor)

    def _continued(self, query: ListQuery, token: str) -> tuple[ListQuery, AsOf]:
        cursor = Cursor.decode(token, query.dataset, query.filters)
        pinned = {
            "order_by": (query.order_by, cursor.order_by),
            "order_dir": (query.descending, cursor.descending),
            "offset": (query.offset, 0),
            "as_of": (self.as_of, cursor.as_of),
        }
        for name, (sent, wanted) in pinned.items():
            if name in self.model_fields_set and sent != wanted:
                raise Invalid(f"{name}: the cursor has its own; leave one of them out")
        place = (cursor.value, cursor.row_id)
        following = replace(query, order_by=cursor.order_by, descending=cursor.descending, after=place)
        return following, cursor.as_of


class AggregateParameters(FilteredParameters):
    group_by: str | None
    bucket: Bucket | None = Field(None, description="count by time, too; without group_by by time only")

    def aggregated(self, dataset: Dataset) -> tuple[AggregateQuery, AsOf]:
        group_by = self.group_by or (None if self.bucket else dataset.groupings[0])
        column = None if group_by is None else _column_name(dataset, group_by)
        width = BUCKETS[self.bucket] if self.bucket else None
        return AggregateQuery(dataset, column, self.filters(dataset), width, self.scan), self.as_of


class CompareParameters(ListParameters, AggregateParameters):
    question: Literal["list", "aggregate", "stats"] = Field(
        "list", description="the kind of query, which takes the parameters of its kind"
    )
    engines: Literal["default", "all"] = Field(
        "default", description="`all`: each store by every engine that can read it"
    )
    method: Literal["auto", "scan"] = Field(
        "scan", description="`auto`: stores may use data that they keep beside the rows"
    )

    def compared(self, dataset: Dataset) -> tuple[Query, AsOf]:
        kinds: dict[str, type[Parameters]] = {
            "list": ListParameters,
            "aggregate": AggregateParameters,
            "stats": Parameters,
        }
        chosen = kinds[self.question]
        own = set(chosen.model_fields) | {"question", "engines"}
        own |= _filter_fields(dataset).keys() if issubclass(chosen, FilteredParameters) else set()
        if strange := sorted(type(self).model_fields[name].alias or name for name in self.model_fields_set - own):
            raise Invalid(f"{', '.join(strange)}: no parameter of question={self.question}")
        match self.question:
            case "list":
                return self.listed(dataset)
            case "aggregate":
                return self.aggregated(dataset)
            case "stats":
                return StatsQuery(dataset, self.scan), self.as_of


class OneStoreParameters(Parameters):
    """The parameters of a query of one store."""

    engine: str | None = Field(
        None, description="the engine that reads the store, where there are several: see compare?engines=all"
    )
    cache: Literal["on", "off"] = Field("on", description="`off`: neither return a cached result nor cache the result")

    @property
    def use_cache(self) -> bool:
        return self.cache == "on"


class StatsParameters(OneStoreParameters):
    pass


class OneStoreList(OneStoreParameters, ListParameters):
    pass


class OneStoreAggregate(OneStoreParameters, AggregateParameters):
    pass


_RESERVED_NAMES = {
    "group_by",
    _TEXT,
    *OneStoreList.model_fields,
    *OneStoreAggregate.model_fields,
    *CompareParameters.model_fields,
}
"""The names of parameters that are no filters."""


def list_parameters(dataset: Dataset) -> type[OneStoreList]:
    return make_model(dataset, OneStoreList, _list_fields(dataset))


def aggregate_parameters(dataset: Dataset) -> type[OneStoreAggregate]:
    return make_model(dataset, OneStoreAggregate, _aggregate_fields(dataset))


def compare_parameters(dataset: Dataset) -> type[CompareParameters]:
    return make_model(dataset, CompareParameters, _list_fields(dataset) | _aggregate_fields(dataset))


def make_model(dataset: Dataset, base: type[Model], fields: dict[str, Any]) -> type[Model]:
    """Return the model of one dataset. `fields`: beside those of `base` and of the dataset's filters."""
    name = f"{dataset.name.capitalize()}{base.__name__}"
    return create_model(name, __base__=base, **_filter_fields(dataset), **fields)


def _list_fields(dataset: Dataset) -> dict[str, Any]:
    return {"order_by": (_one_of(dataset, dataset.orderings), Field(dataset.by_name[dataset.time].wire))}


def _aggregate_fields(dataset: Dataset) -> dict[str, Any]:
    first = dataset.by_name[dataset.groupings[0]].wire
    described = Field(None, description=f"{first} when there is no bucket either")
    return {"group_by": (_one_of(dataset, dataset.groupings) | None, described)}


def _filter_fields(dataset: Dataset) -> dict[str, Any]:
    columns = [dataset.by_name[name] for name in dataset.filters]
    fields = {_filter_name(dataset, column): _filter_field(dataset, column) for column in columns}
    if dataset.search:
        wire = dataset.by_name[dataset.search].wire
        fields[_TEXT] = (_Text | None, Field(None, description=f"only rows whose {wire} contains exactly this text"))
    return fields


def _filter_name(dataset: Dataset, column: Column) -> str:
    """Return the column's name; if every query has a parameter of that name, a longer one: `footprint_method`."""
    is_reserved = {column.name, column.wire} & _RESERVED_NAMES
    return f"{dataset.singular}_{column.name}" if is_reserved else column.name


def _filter_field(dataset: Dataset, column: Column) -> Any:
    kind: Any = _Uuid if column.kind == "uuid" else _Text
    name = _filter_name(dataset, column)
    alias = column.wire if name == column.name else None
    return kind | None, Field(None, alias=alias, description=f"only rows with this {column.wire}, as it was sent")


def _one_of(dataset: Dataset, names: tuple[str, ...]) -> Any:
    """Return a type that accepts these columns by their wire name or by their own name."""
    wires = [dataset.by_name[name].wire if name in dataset.by_name else name for name in names]
    return Literal[tuple(dict.fromkeys((*wires, *names)))]


def _column_name(dataset: Dataset, name: str) -> str:
    return next((column.name for column in dataset.columns if column.wire == name), name)


def _clamped(instant: int | None) -> int | None:
    """Move an instant into the range of accepted event times. Results stay the same, and it fits every store."""
    return None if instant is None else min(max(instant, 0), LAST_INSTANT)
