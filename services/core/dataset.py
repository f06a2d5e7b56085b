"""The one description of a dataset, from which everything else is derived.

A dataset is a name, a Kafka topic and a tuple of columns. Every stored row carries two columns more, the
same in every store: `id` (see `ids`) and `created_at`, the instant its batch was accepted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["category", "text", "timestamp", "number", "json", "uuid"]
"""What a column holds, and how it travels once accepted (its canonical form):

category   text with few distinct values; str
text       str, '' when missing
timestamp  int, microseconds since 1970-01-01 UTC; ISO 8601 with an offset on the wire
number     float, None when missing
json       str: the bytes the client sent, unchanged; '{}' when missing
uuid       str, lower case with dashes
"""


MAX_CATEGORY_CHARACTERS = 256
"""The most Unicode characters of a value in one of a dataset's `bounded` columns.

Such values are keys elsewhere: of Kafka's partitions, of groups in memory, of PostgreSQL's indexes (2,704 bytes an
entry, of which several values may be part), of cursors in URLs.
"""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `name` is its name in every store and reply, `wire` its name in the HTTP body.

    `derived_from` = (json column, field): the value is taken from that column's object at ingest ('' when
    absent) and is not itself on the wire, so every store holds one and the same value.

    `added`: the dataset had rows before it had this column. Rows without it are the same as before: a line leaves the
    column out where its value is missing.
    """

    name: str
    kind: Kind
    wire: str = ""
    required: bool = False
    derived_from: tuple[str, str] | None = None
    added: bool = False

    def __post_init__(self) -> None:
        if not self.wire:
            object.__setattr__(self, "wire", self.name)
        if self.added and (self.required or self.kind in ("timestamp", "uuid")):
            raise ValueError(f"column {self.name}: an added column must be optional, and of a kind that can be missing")
        if self.derived_from and self.required:
            raise ValueError(f"column {self.name}: a derived column cannot be required")


ID = Column("id", "number")
CREATED_AT = Column("created_at", "timestamp")
SYSTEM_COLUMNS = ("id", "created_at")

# Of other kinds, stores differ: where a missing number stands in an order, how a UUID sorts.
_USES = {
    "groupings": ("category", "text"),
    "orderings": ("category", "text", "timestamp"),
    "filters": ("category", "text", "uuid"),
}


@dataclass(frozen=True, slots=True)
class Alert:
    """Rows whose `column` equals `value` are also sent to `topic`, in the same Kafka transaction."""

    topic: str
    column: str
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """There is one object for each dataset, compared and hashed as such.

    `name` names tables and routes; rows of one `key` keep their order within a publisher's slot.

    `singular` and `plural` are the words of the HTTP contract (`/api/collect/<word>`, reply field "type").
    `groupings` are the columns an aggregate may group by, and for which rollups are kept; `orderings` those a list may
    be ordered by; `search` is the text column in which a text may be looked for.
    """

    name: str
    singular: str
    plural: str
    topic: str
    key: str
    time: str
    columns: tuple[Column, ...]
    groupings: tuple[str, ...]
    orderings: tuple[str, ...]
    filters: tuple[str, ...]
    alert: Alert | None = None
    search: str | None = None
    by_name: Mapping[str, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [c.name for c in self.columns]
        if len(set(names)) != len(names) or set(names) & set(SYSTEM_COLUMNS):
            raise ValueError(f"dataset {self.name}: column names must be distinct and not {SYSTEM_COLUMNS}")
        if [c.added for c in self.columns] != sorted(c.added for c in self.columns):
            raise ValueError(f"dataset {self.name}: added columns come last, in the order they were added")
        object.__setattr__(self, "by_name", {c.name: c for c in self.columns})
        for used in (self.key, self.time, *self.groupings, *self.filters, *filter(None, [self.search])):
            if used not in self.by_name:
                raise ValueError(f"dataset {self.name}: no column {used!r}")
        for used in self.orderings:
            if used not in self.by_name and used not in SYSTEM_COLUMNS:
                raise ValueError(f"dataset {self.name}: no column {used!r}")
        for use, kinds in _USES.items():
            for used in getattr(self, use):
                if used in self.by_name and self.by_name[used].kind not in kinds:
                    raise ValueError(f"dataset {self.name}: {use}: {used} is of another kind than {', '.join(kinds)}")

    @property
    def column_names(self) -> tuple[str, ...]:
        """All stored columns in the canonical order: id, created_at, then the dataset's own."""
        return (*SYSTEM_COLUMNS, *(c.name for c in self.columns))

    @property
    def bounded(self) -> tuple[Column, ...]:
        """The columns whose values have at most MAX_CATEGORY_CHARACTERS: categories, and texts that rows are keyed,
        grouped or ordered by."""
        used = {self.key, *self.groupings, *self.orderings}
        return tuple(c for c in self.columns if c.kind == "category" or (c.kind == "text" and c.name in used))

    @property
    def wire_columns(self) -> tuple[Column, ...]:
        """The columns a client may send."""
        return tuple(c for c in self.columns if c.derived_from is None)
