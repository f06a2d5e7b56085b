"""Rules by which values of a column are invented. `synthesis.py` turns them into rows."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Constant:
    """Always `value`."""

    value: str | float


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `values`, each with its weight (equal weights when none are given)."""

    values: tuple[str | int, ...]
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Numbered:
    """Text: `prefix` and a whole number in first..last, both included. With an empty prefix: the number."""

    first: int
    last: int
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Uuid:
    """A random version-4 UUID."""


@dataclass(frozen=True, slots=True)
class Now:
    """The time of the row: `start + index * step` of the table being made."""


@dataclass(frozen=True, slots=True)
class Object:
    """A JSON object of these fields, in this order."""

    fields: Mapping[str, "Rule"]


@dataclass(frozen=True, slots=True)
class By:
    """The rule in `cases` for the value that this row has in `column`, whose own rule is a Choice; else `default`."""

    column: str
    cases: Mapping[str, "Rule"]
    default: "Rule"


Rule = Constant | Choice | Numbered | Uuid | Now | Object | By
