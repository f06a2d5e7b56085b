"""Fragments of SQL. Names come from dataset descriptions, and every value is a parameter, which the server binds."""

from collections.abc import Set
from typing import Any, Literal

from services.core.dataset import CREATED_AT, ID, Column, Dataset
from services.core.ids import batch_ranges, end_id, first_id
from services.core.queries import Filters, like_pattern
from services.stores.clickhouse.names import quoted, stored_name

_MOST_RANGES = 100  # of ids in one statement

Statement = tuple[str, dict[str, Any]]
"""SQL, and the values of its parameters."""


def select(
    what: str, dataset: Dataset, where: str, rest: str = "", clause: Literal["WHERE", "PREWHERE"] = "WHERE"
) -> str:
    """Return a SELECT from the dataset's table. Names come from descriptions, and every value is a parameter."""
    return f"SELECT {what} FROM {quoted(dataset.name)} {clause} {where} {rest}"  # noqa: S608


def insert_prefix(dataset: Dataset) -> str:
    """Return the text with which every insert of the dataset's rows begins. It contains no quotation mark."""
    return f"INSERT INTO {quoted(dataset.name)} ("


def among_ids_of(batches: Set[int]) -> str:
    """Return the condition for ids of these batches: a few ranges, which may have ids of other batches, too."""
    ranges = batch_ranges(batches, _MOST_RANGES)
    return " OR ".join(f"id >= {first_id(first):d} AND id < {end_id(last):d}" for first, last in ranges)


def columns(dataset: Dataset) -> str:
    """Return the expressions that select all columns in canonical order and form."""
    return ", ".join(map(canonical, (ID, CREATED_AT, *dataset.columns)))


def canonical(column: Column) -> str:
    """Return the expression that selects the column in canonical form."""
    match column.kind:
        case "timestamp":
            return f"toUnixTimestamp64Micro({stored_name(column)})"
        case "uuid":
            return f"toString({stored_name(column)})"
    return stored_name(column)


def where(dataset: Dataset, filters: Filters, as_of: int) -> Statement:
    conditions: list[str] = ["id < {end_id:Int64}"]
    parameters: dict[str, Any] = {"end_id": end_id(as_of)}
    for index, (name, value) in enumerate(filters.equals):
        kind = "UUID" if dataset.by_name[name].kind == "uuid" else "String"
        conditions.append(f"{quoted(name)} = {{equals{index}:{kind}}}")
        parameters[f"equals{index}"] = value
    for operator, name, bound in ((">=", "start", filters.start), ("<", "end", filters.end)):
        if bound is not None:
            column = stored_name(dataset.by_name[dataset.time])
            conditions.append(f"{column} {operator} fromUnixTimestamp64Micro({{{name}:Int64}}, 'UTC')")
            parameters[name] = bound
    if filters.text:
        conditions.append(f"{quoted(dataset.search)} LIKE {{text:String}}" if dataset.search else "false")
        parameters["text"] = like_pattern(filters.text)
    return " AND ".join(conditions), parameters
