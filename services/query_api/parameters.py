"""Query parameters of one dataset, made from its description, and the questions they ask."""

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model

from services.core.dataset import Column, Dataset
from services.core.errors import Invalid
from services.core.instants import LAST_INSTANT
from services.core.queries import AggregateQuestion, Filters, ListQuestion

MAX_LIMIT = 10_000
MAX_OFFSET = 1_000_000_000


def _microseconds(value: str) -> int:
    """Epoch seconds or ISO 8601; without an offset it is UTC."""
    try:
        return int(Decimal(value) * 1_000_000)
    except (InvalidOperation, OverflowError):
        pass
    except ValueError:
        raise ValueError("not a number of seconds") from None
    try:
        instant = datetime.fromisoformat(_with_plus(value))
    except ValueError:
        raise ValueError("neither epoch seconds nor ISO 8601") from None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // _MICROSECOND


_MICROSECOND = datetime.resolution


def _with_plus(value: str) -> str:
    """`...T10:00:00 02:00`: in a query string an offset's plus sign reads as a space unless it was escaped."""
    return "+".join(value.rsplit(" ", 1)) if "T" in value else value


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("contains the character NUL")
    return value


_Instant = Annotated[
    int,
    BeforeValidator(_microseconds),
    WithJsonSchema({"type": "string", "examples": ["1763700000.5", "2026-11-21T10:00:00Z"]}),
]
_Text = Annotated[str, AfterValidator(_without_nul)]
_Uuid = Annotated[UUID, AfterValidator(str)]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)

    start_time: _Instant | None = Field(None, description="rows at or after: epoch seconds or ISO 8601")
    end_time: _Instant | None = Field(None, description="rows before: epoch seconds or ISO 8601")

    def filters(self, dataset: Dataset) -> Filters:
        start, end = self.start_time, self.end_time
        if start is not None and end is not None and end < start:
            raise Invalid("end_time is before start_time")
        equals = tuple((name, value) for name in dataset.filters if (value := getattr(self, name)) is not None)
        return Filters(equals, _within(start), _within(end))


class ListParameters(_Parameters):
    limit: int = Field(100, ge=1, le=MAX_LIMIT)
    offset: int = Field(0, ge=0, le=MAX_OFFSET)
    order_by: str
    order_dir: Literal["desc", "asc"] = "desc"
    count: Literal["exact", "none"] = Field("exact", description="`none` leaves total_count out: it costs a scan")

    def question(self, dataset: Dataset) -> ListQuestion:
        return ListQuestion(
            dataset,
            self.filters(dataset),
            _column_name(dataset, self.order_by),
            self.order_dir == "desc",
            self.limit,
            self.offset,
            self.count == "exact",
        )


class AggregateParameters(_Parameters):
    group_by: str

    def question(self, dataset: Dataset) -> AggregateQuestion:
        return AggregateQuestion(dataset, _column_name(dataset, self.group_by), self.filters(dataset))


def list_parameters(dataset: Dataset) -> type[ListParameters]:
    order_by = (_one_of(dataset, dataset.orderings), Field(dataset.by_name[dataset.time].wire))
    return create_model(
        f"{dataset.name.capitalize()}List", __base__=ListParameters, order_by=order_by, **_filter_fields(dataset)
    )


def aggregate_parameters(dataset: Dataset) -> type[AggregateParameters]:
    group_by = (_one_of(dataset, dataset.groupings), Field(dataset.by_name[dataset.groupings[0]].wire))
    return create_model(
        f"{dataset.name.capitalize()}Aggregate",
        __base__=AggregateParameters,
        group_by=group_by,
        **_filter_fields(dataset),
    )


def _filter_fields(dataset: Dataset) -> dict[str, Any]:
    return {name: _filter_field(dataset.by_name[name]) for name in dataset.filters}


def _filter_field(column: Column) -> Any:
    kind: Any = _Uuid if column.kind == "uuid" else _Text
    return (kind | None, Field(None, alias=column.wire, description=f"only rows with this {column.wire}"))


def _one_of(dataset: Dataset, names: tuple[str, ...]) -> Any:
    """A type that takes these columns by their wire name or their own."""
    wires = [dataset.by_name[name].wire if name in dataset.by_name else name for name in names]
    return Literal[tuple(dict.fromkeys((*wires, *names)))]


def _column_name(dataset: Dataset, name: str) -> str:
    return next((column.name for column in dataset.columns if column.wire == name), name)


def _within(instant: int | None) -> int | None:
    """Moved into the range of accepted event times, which changes no answer and fits every store's type."""
    return None if instant is None else min(max(instant, 0), LAST_INSTANT)
