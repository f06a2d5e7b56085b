"""Lines that keep the rules of `core.line_fields`, and lines that break one of them."""

from collections.abc import Iterator
from typing import Any

from services import datasets
from services.core.dataset import Column, Dataset
from services.core.ids import first_id
from services.core.instants import LAST_INSTANT
from services.core.line_fields import line_fields

METERS = Dataset(
    "meters",
    "meter",
    "meters",
    "meters",
    key="name",
    time="timestamp",
    columns=(
        Column("timestamp", "timestamp", required=True),
        Column("name", "text", required=True),
        Column("state", "category"),
        Column("value", "number", required=True),
        Column("error", "number"),
        Column("note", "text"),
        Column("tags", "json"),
    ),
    groupings=(),
    orderings=("name",),
    filters=(),
)
DATASETS = (*datasets.all_datasets(), METERS)
GOOD: dict[str, Any] = {
    "timestamp": LAST_INSTANT - 1,
    "uuid": "00000000-0000-4000-8000-000000000000",
    "number": 1.5,
}
"""A value of each kind of column; every other kind is text."""


def good(dataset: Dataset) -> dict[str, Any]:
    values = {column.name: GOOD.get(column.kind, "x" * 256) for column in dataset.columns}
    return {"id": first_id(1), "created_at": 5} | values


def bad(dataset: Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
    """One line for each rule that can be broken, and the field that breaks it."""
    for field in line_fields(dataset):
        values: list[Any] = [["x"]]
        if field.limits:
            values += [field.limits.lowest - 1, field.limits.highest + 1, "1", 1.5]
        if field.max_characters:
            values += ["x" * (field.max_characters + 1), 1]
        if field.pattern:
            valid = good(dataset)[field.name]
            values += [valid.replace("4", "g"), valid.upper() + "A", valid + "\n"]
        if field.required:
            values.append(None)
            yield field.name, {name: value for name, value in good(dataset).items() if name != field.name}
        for value in values:
            yield field.name, {**good(dataset), field.name: value}
