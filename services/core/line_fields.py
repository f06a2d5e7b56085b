"""The fields of a line, which is one row of a Kafka value: the rules that every reader's check of lines is made from.

Three readers check lines, each in its own engine: `core.lines` by msgspec, `lake.lines` by pyarrow, and
`spark_jobs.parsing` by Spark SQL. They differ in speed and in how they name a problem. They refuse the same lines, with
one exception: Spark takes a value of any JSON type for a text. Other fields than these are ignored, because a newer
description of the dataset may have them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from services.core.dataset import CREATED_AT, ID, MAX_CATEGORY_CHARACTERS, Column, Dataset
from services.core.ids import first_id
from services.core.instants import LAST_INSTANT

Type = Literal["integer", "number", "text"]
"""How JSON holds a value: an integer fits 64 bits, a number is a float."""


class IntegerLimits(NamedTuple):
    """The lowest and the highest integer that are accepted, and what is wrong with any other integer."""

    lowest: int
    highest: int
    problem: str


IDS = IntegerLimits(first_id(1), (1 << 63) - 1, "is the id of no row")
INSTANTS = IntegerLimits(0, LAST_INSTANT - 1, "is not between 1970 and 2100")

# Engines differ about `$` before a last newline; the length of a UUID rules such a text out.
_UUID, _UUID_CHARACTERS = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", 36


@dataclass(frozen=True, slots=True)
class LineField:
    """One field of a line.

    A field that is not `required` may be left out or be null; it counts as `missing` then (None: the row has no value).
    An integer lies within `limits`. A text has `max_characters` at most, and `pattern` describes all of it; both are
    None for a text of any form. Python, RE2 and Java read the pattern alike.
    """

    name: str
    type: Type
    required: bool
    missing: str | None = None
    limits: IntegerLimits | None = None
    max_characters: int | None = None
    pattern: str | None = None


@lru_cache
def line_fields(dataset: Dataset) -> tuple[LineField, ...]:
    """Return the fields in the canonical order: id, created_at, then the dataset's columns."""
    return (
        LineField(ID.name, "integer", required=True, limits=IDS),
        LineField(CREATED_AT.name, "integer", required=True, limits=INSTANTS),
        *(_field(column, column in dataset.length_limited) for column in dataset.columns),
    )


def _field(column: Column, is_length_limited: bool) -> LineField:
    match column.kind:
        case "timestamp":
            return LineField(column.name, "integer", required=True, limits=INSTANTS)
        case "number":
            return LineField(column.name, "number", column.required)
        case "uuid":
            return LineField(column.name, "text", column.required, "", None, _UUID_CHARACTERS, _UUID)
        case "json":
            return LineField(column.name, "text", column.required, "{}")
    return LineField(
        column.name, "text", column.required, "", None, MAX_CATEGORY_CHARACTERS if is_length_limited else None
    )
