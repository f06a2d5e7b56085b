"""The rollup in ClickHouse: a projection of the dataset's table.

A projection is part of each part: written with its rows or not at all, dropped as a repetition with them, merged and
deleted with them; parts that are older than it are counted by their rows. So it can be neither behind nor wrong, and
nothing has to keep it (ADR 0009 compares it with a materialised view).
"""

from typing import Any

from clickhouse_connect.driver.client import Client

from services.core.bounds import MAX_GROUPS
from services.core.dataset import Dataset
from services.core.ids import ROW_BITS
from services.core.queries import AggregateQuestion, Question
from services.rollups import questions
from services.rollups.questions import Times

BUCKET_BITS = 6
"""Batches are told apart by the 64: of an answer's last bucket, when it is not whole, the rows are scanned."""

_BUCKET = f"bitShiftRight(id, {ROW_BITS + BUCKET_BITS})"


def prepare(client: Client, dataset: Dataset, time: str) -> None:
    """Add the projection to the dataset's table, and to the parts that were there before; idempotent.

    `time`: what the table calls the dataset's time.
    """
    alter, name = f"ALTER TABLE {_quoted(dataset.name)}", questions.name(dataset)
    keys = ", ".join([_minute(time), *map(_quoted, dataset.groupings), _BUCKET])
    # What an operator deletes leaves the counts, too.
    client.command(f"{alter} MODIFY SETTING lightweight_mutation_projection_mode = 'rebuild'")
    client.command(f"{alter} ADD PROJECTION IF NOT EXISTS {_quoted(name)} (SELECT {keys}, count() GROUP BY {keys})")
    older = client.query(
        "SELECT count() FROM system.parts WHERE database = currentDatabase() AND table = {table:String} AND active"
        " AND NOT has(projections, {name:String})",
        {"table": dataset.name, "name": name},
    )
    if older.result_rows[0][0]:
        client.command(f"{alter} MATERIALIZE PROJECTION {_quoted(name)}")  # goes on in the background


def query(question: Question, as_of: int, time: str) -> tuple[str, dict[str, Any]] | None:
    """A statement that counts what the question asks for, and its parameters; None when a scan must answer.

    Its rows are those of the answer; for a list the one with its total.
    """
    until = (as_of + 1) >> BUCKET_BITS << BUCKET_BITS
    plan = questions.plan(question, until, as_of)
    if plan is None:
        return None
    # Only in the projection's own terms is it made use of.
    counts = [_counts(question, f"{_BUCKET} < {until >> BUCKET_BITS:d}", _minute(time), plan.minutes)]
    counts += [_counts(question, f"id >= {r.first_id:d} AND id < {r.end_id:d}", time, r.times) for r in plan.rows]
    keys, order = ", ".join(questions.keys(question)), ", ".join(questions.order(question))
    columns = ", ".join([*questions.keys(question), "sum(part) AS counted"])
    grouped = f"GROUP BY {keys} ORDER BY {order} LIMIT {MAX_GROUPS + 1}" if keys else ""
    # Names come from dataset descriptions, numbers are ours, and every text is a parameter.
    statement = f"SELECT {columns} FROM ({' UNION ALL '.join(counts)}) {grouped}"  # noqa: S608
    return statement, {f"equals{n}": value for n, (_, value) in enumerate(question.filters.equals)}


def _counts(question: Question, batches: str, time: str, times: Times) -> str:
    conditions, values = [batches], []
    for operator, bound in ((">=", times.start), ("<", times.end)):
        if bound is not None:
            conditions.append(f"{time} {operator} fromUnixTimestamp64Micro({bound:d}, 'UTC')")
    for n, (column, _) in enumerate(question.filters.equals):
        conditions.append(f"{_quoted(column)} = {{equals{n}:String}}")
    if isinstance(question, AggregateQuestion):
        if question.bucket:
            values.append(f"intDiv(toUnixTimestamp({time}), {question.bucket // 1_000_000:d}) * {question.bucket:d}")
        if question.group_by:
            values.append(_quoted(question.group_by))
    keys = questions.keys(question)
    columns = [f"{value} AS {key}" for value, key in zip(values, keys, strict=True)]
    selected, where = ", ".join([*columns, "count() AS part"]), " AND ".join(conditions)
    grouped = f"GROUP BY {', '.join(keys)}" if keys else ""
    return f"SELECT {selected} FROM {_quoted(question.dataset.name)} WHERE {where} {grouped}"  # noqa: S608


def _minute(time: str) -> str:
    return f"toStartOfMinute({time})"


def _quoted(name: str) -> str:
    return f"`{name}`"
