"""The conditions of a query as SQL. Names come from dataset descriptions, and every value is a parameter."""

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from services.core.dataset import Dataset
from services.core.ids import end_id
from services.core.instants import to_datetime
from services.core.queries import Filters, Query, like_pattern
from services.stores.postgres import closed_days
from services.stores.postgres.closed_days import ClosedDay

Statement = tuple[sql.Composed, list[Any]]
"""SQL, and the values of its placeholders."""


def where_in(query: Query, as_of: int, days: Sequence[ClosedDay]) -> Statement:
    """Return the query's conditions, without the days that are known to hold none of its rows."""
    conditions, parameters = where(query.filters, query.dataset, as_of)
    outside = closed_days.outside(days, query.filters.start, query.filters.end)
    return conditions + closed_days.without(outside), parameters


def where(filters: Filters, dataset: Dataset, as_of: int) -> Statement:
    conditions: list[sql.Composable] = [sql.SQL("id < %s")]
    parameters: list[Any] = [end_id(as_of)]
    for name, value in filters.equals:
        conditions.append(sql.SQL("{} = %s").format(sql.Identifier(name)))
        parameters.append(value)
    for operator, bound in ((sql.SQL(">="), filters.start), (sql.SQL("<"), filters.end)):
        if bound is not None:
            conditions.append(sql.SQL("{} {} %s").format(sql.Identifier(dataset.time), operator))
            parameters.append(to_datetime(bound))
    if filters.text and dataset.search:
        conditions.append(sql.SQL("{} LIKE %s").format(sql.Identifier(dataset.search)))
        parameters.append(like_pattern(filters.text))
    elif filters.text:
        conditions.append(sql.SQL("false"))
    return sql.SQL(" AND ").join(conditions), parameters
