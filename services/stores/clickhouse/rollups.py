"""The rollup in ClickHouse is a projection of the dataset's table.

Each ClickHouse part contains the projection of its rows: ClickHouse writes, deduplicates, merges and deletes it with
the rows, and scans the ClickHouse parts that are older than the projection. The rollup is therefore never behind and
never wrong, and needs no maintenance (ADR 0009 compares it with a materialised view).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from clickhouse_connect.driver.client import Client

from services.core import rollups
from services.core.dataset import Dataset
from services.core.ids import ROW_BITS
from services.core.local_week import WEEK, Offset
from services.core.queries import MINUTE, AggregateQuery, Query, TrafficQuery
from services.core.result_size import MAX_GROUPS
from services.core.rollups import Plan, Times
from services.stores.clickhouse.names import quoted, stored_name

BATCH_SPAN_BITS = 6
"""The projection counts spans of 64 batches. A query as of a batch within a span scans the rows of that span."""

_SPAN = f"bitShiftRight(id, {ROW_BITS + BATCH_SPAN_BITS})"


def prepare(client: Client, dataset: Dataset) -> None:
    """Add the projection to the dataset's table, and to the ClickHouse parts that are older; idempotent."""
    alter, name = f"ALTER TABLE {quoted(dataset.name)}", rollups.name(dataset)
    keys = ", ".join([_minute(_time(dataset)), *map(quoted, dataset.groupings), _SPAN])
    # Rows that an operator deletes leave the counts, too.
    client.command(f"{alter} MODIFY SETTING lightweight_mutation_projection_mode = 'rebuild'")
    client.command(f"{alter} ADD PROJECTION IF NOT EXISTS {quoted(name)} (SELECT {keys}, count() GROUP BY {keys})")
    older = client.query(
        "SELECT count() FROM system.parts WHERE database = currentDatabase() AND table = {table:String} AND active"
        " AND NOT has(projections, {name:String})",
        {"table": dataset.name, "name": name},
    )
    if older.result_rows[0][0]:
        client.command(f"{alter} MATERIALIZE PROJECTION {quoted(name)}")  # the server goes on in the background


def plan(query: Query, as_of: int) -> Plan | None:
    """Plan the query for the projection, which counts whole spans of batches. Return None if a scan must answer."""
    return rollups.plan(query, (as_of + 1) >> BATCH_SPAN_BITS << BATCH_SPAN_BITS, as_of)


def statement(plan: Plan) -> tuple[str, dict[str, Any]]:
    """Return the statement that counts by this plan, and its parameters. Its rows have the form of a QueryResult."""
    time = _time(plan.query.dataset)
    # ClickHouse uses the projection only for expressions that are spelled as the projection spells them.
    counts = [_counts(plan, f"{_SPAN} < {plan.until >> BATCH_SPAN_BITS:d}", _minute(time), plan.minutes)]
    counts += [_counts(plan, f"id >= {r.first_id:d} AND id < {r.end_id:d}", time, r.times) for r in plan.rows]
    keys, order = ", ".join(plan.keys), ", ".join(plan.order)
    columns = ", ".join([*plan.keys, "sum(term) AS counted"])
    grouped = f"GROUP BY {keys} ORDER BY {order} LIMIT {MAX_GROUPS + 1}" if keys else ""
    # Names come from dataset descriptions, numbers are ours, and every text is a parameter.
    text = f"SELECT {columns} FROM ({' UNION ALL '.join(counts)}) {grouped}"  # noqa: S608
    return text, {f"equals{n}": value for n, (_, value) in enumerate(plan.query.filters.equals)}


def _counts(plan: Plan, batches: str, time: str, times: Times) -> str:
    query, conditions, values = plan.query, [batches], []
    for operator, bound in ((">=", times.start), ("<", times.end)):
        if bound is not None:
            conditions.append(f"{time} {operator} fromUnixTimestamp64Micro({bound:d}, 'UTC')")
    for n, (column, _) in enumerate(query.filters.equals):
        conditions.append(f"{quoted(column)} = {{equals{n}:String}}")
    if isinstance(query, AggregateQuery):
        if query.bucket:
            values.append(f"intDiv(toUnixTimestamp({time}), {query.bucket // 1_000_000:d}) * {query.bucket:d}")
        if query.group_by:
            values.append(quoted(query.group_by))
    if isinstance(query, TrafficQuery) and plan.keys:
        values.append(minute_of_week(query.offsets, f"toUnixTimestamp({time}) * 1000000"))
    columns = [f"{value} AS {key}" for value, key in zip(values, plan.keys, strict=True)]
    selected, where = ", ".join([*columns, "count() AS term"]), " AND ".join(conditions)
    grouped = f"GROUP BY {', '.join(plan.keys)}" if plan.keys else ""
    return f"SELECT {selected} FROM {quoted(query.dataset.name)} WHERE {where} {grouped}"  # noqa: S608


def minute_of_week(offsets: Sequence[Offset], time: str) -> str:
    """Return the minute of the local week of `time`, in microseconds, as `local_week.minute_of_week` does."""
    branches = [f"{time} < {following.start:d}, {offset.since_monday:d}" for offset, following in pairwise(offsets)]
    shift = f"{offsets[-1].since_monday:d}"
    if branches:
        shift = f"multiIf({', '.join(branches)}, {shift})"
    since = f"({time} + {shift}) % {WEEK:d}"
    return f"{since} - {since} % {MINUTE:d}"


def _time(dataset: Dataset) -> str:
    return stored_name(dataset.by_name[dataset.time])


def _minute(time: str) -> str:
    return f"toStartOfMinute({time})"
