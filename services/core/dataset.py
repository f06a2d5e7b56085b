"""The one description of a dataset, from which everything else is derived.

A dataset is a name, a Kafka topic and a tuple of columns. Every stored row has two more columns, which are the same in
every store: `id` (see `ids`) and `created_at`, the time at which its batch was accepted. How values are invented for a
load is not part of the description: see `services/generator/invention`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["category", "text", "timestamp", "number", "json", "uuid"]
"""The kind of a column's values, and their canonical form, which they have once they are accepted:

category   text with few distinct values; str
text       str, '' when missing
timestamp  int, microseconds since 1970-01-01 UTC; ISO 8601 with an offset on the wire
number     float, None when missing
json       str: the bytes the client sent, unchanged; '{}' when missing
uuid       str, lower case with dashes
"""


MAX_CATEGORY_CHARACTERS = 256
"""The most Unicode characters of a value in one of a dataset's `length_limited` columns.

Such values are keys elsewhere: of Kafka's partitions, of groups in memory, of PostgreSQL's indexes (2,704 bytes an
entry, of which several values may be part), of cursors in URLs.
"""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `name` is its name in every store and reply, `wire` its name in the HTTP body.

    `derived_from` = (json column, field): ingest takes the value from that field of that column's object ('' when the
    field is absent). The column itself is not on the wire, so that every store holds the same value.

    `required`: must be True for the kinds `timestamp` and `uuid`, which have no value that means missing.

    `added`: the dataset had rows before it had this column. A line leaves the column out where its value is missing, so
    that the lines of the older rows stay as they were.
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
        if self.kind in ("timestamp", "uuid") and not self.required and not self.added:
            raise ValueError(f"column {self.name}: a {self.kind} has no missing value, so it must be required")
        if self.added and (self.required or self.kind in ("timestamp", "uuid")):
            raise ValueError(f"column {self.name}: an added column must be optional, and of a kind that can be missing")
        if self.derived_from and self.required:
            raise ValueError(f"column {self.name}: a derived column cannot be required")


ID = Column("id", "number")
"""Its kind is only that of a JSON number: an id is a 64-bit integer and never missing, so each store names its type."""

CREATED_AT = Column("created_at", "timestamp", required=True)
SYSTEM_COLUMNS = ("id", "created_at")

# Stores differ in other kinds: in where an order places a missing number, and in how they sort UUIDs. The code that
# partitions, searches and alerts expects text.
_KINDS: Mapping[str, tuple[Kind, ...]] = {
    "key": ("category", "text", "uuid"),
    "time": ("timestamp",),
    "search": ("category", "text"),
    "alert": ("category", "text", "uuid"),
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
    """A description. There is one object for each dataset, which is compared and hashed by its identity.

    `name` names tables and routes. Rows that have the same value in the column `key` keep their order within a
    publisher's slot.

    `singular` and `plural` are the words of the HTTP contract (`/api/collect/<word>`, reply field "type").
    `groupings` are the columns that an aggregate may group by, and for which rollups are kept. `orderings` are the
    columns that a list may be ordered by. `search` is the text column that a text search looks through.

    A dataset `on_request` is part of a pipeline only where LOGPIPE_EXTRA_DATASETS names it. Its rows may be dropped all
    at once (`logpipe maintain --once --empty`).
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
    on_request: bool = False
    by_name: Mapping[str, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [c.name for c in self.columns]
        if len(set(names)) != len(names) or set(names) & set(SYSTEM_COLUMNS):
            raise ValueError(f"dataset {self.name}: column names must be distinct and not {SYSTEM_COLUMNS}")
        if [c.added for c in self.columns] != sorted(c.added for c in self.columns):
            raise ValueError(f"dataset {self.name}: added columns come last, in the order they were added")
        object.__setattr__(self, "by_name", {c.name: c for c in self.columns})
        uses = {
            "key": (self.key,),
            "time": (self.time,),
            "groupings": self.groupings,
            "orderings": tuple(name for name in self.orderings if name not in SYSTEM_COLUMNS),
            "filters": self.filters,
            "alert": (self.alert.column,) if self.alert else (),
            "search": (self.search,) if self.search else (),
        }
        for use, used in uses.items():
            for name in used:
                if name not in self.by_name:
                    raise ValueError(f"dataset {self.name}: {use}: no column {name!r}")
                if self.by_name[name].kind not in _KINDS[use]:
                    allowed = ", ".join(_KINDS[use])
                    raise ValueError(f"dataset {self.name}: {use}: {name} is of another kind than {allowed}")
        for column in self.columns:
            source = column.derived_from[0] if column.derived_from else None
            if source and (source not in self.by_name or self.by_name[source].kind != "json"):
                raise ValueError(
                    f"dataset {self.name}: column {column.name} is derived from {source}, which is no json column"
                )

    @property
    def column_names(self) -> tuple[str, ...]:
        """All stored columns in the canonical order: id, created_at, then the dataset's own."""
        return (*SYSTEM_COLUMNS, *(c.name for c in self.columns))

    @property
    def length_limited(self) -> tuple[Column, ...]:
        """The columns whose values have at most MAX_CATEGORY_CHARACTERS: categories, and texts that rows are keyed,
        grouped or ordered by."""
        used = {self.key, *self.groupings, *self.orderings}
        return tuple(c for c in self.columns if c.kind == "category" or (c.kind == "text" and c.name in used))

    @property
    def wire_columns(self) -> tuple[Column, ...]:
        """The columns a client may send."""
        return tuple(c for c in self.columns if c.derived_from is None)
