"""The bodies of replies, by the HTTP contract: wire names, times and JSON columns as clients expect them."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from fastapi import Response

from services.core.dataset import CREATED_AT, ID, Column, Dataset
from services.core.instants import to_datetime
from services.core.queries import BUCKETS, AggregateQuery, ListQuery, Query, QueryResult
from services.core.rows import Row
from services.query_api.cursor import Cursor
from services.query_api.service import Comparison, Reply, Stats

_BUCKETS = {width: name for name, width in BUCKETS.items()}


def rows_reply(reply: Reply, query: ListQuery) -> Response:
    answer = reply.answer
    counted = {} if answer.total is None else {"total_count": answer.total}
    # A full page may have been the last one: only the next can tell.
    more = len(answer.rows) == query.limit
    following = {"next_cursor": Cursor.behind(answer.rows[-1], query, reply.as_of).encode()} if more else {}
    return _json(
        {
            **_head(reply),
            **counted,
            "returned_count": len(answer.rows),
            "limit": query.limit,
            "offset": query.offset,
            **following,
            "data": _objects(query.dataset, answer.rows),
        }
    )


def aggregate_reply(reply: Reply, query: AggregateQuery) -> Response:
    grouped = query.group_by and query.dataset.by_name[query.group_by].wire
    names: list[str] = [*(["time"] if query.bucket else []), *(["key"] if grouped else []), "count"]
    counts = [dict(zip(names, row, strict=True)) for row in reply.answer.rows]
    data = [{**count, "time": _iso(count["time"])} for count in counts] if query.bucket else counts
    bucket = {"bucket": _BUCKETS[query.bucket]} if query.bucket else {}
    return _json({**_head(reply), "group_by": grouped, **bucket, "data": data})


def stats_reply(stats: Stats) -> Response:
    answers = stats.answers.values()
    return _json(
        {
            "source": stats.source,
            **_times(list(answers)),
            **{f"{name}_count": answer.rows[0][0] for name, answer in stats.answers.items()},
            "as_of": stats.as_of,
            "method": "+".join(sorted({a.method for a in answers})),
            "scanned": {name: answer.scanned for name, answer in stats.answers.items()},
            "total_ms": round(stats.total_ms, 3),
        }
    )


def comparison_reply(comparison: Comparison, query: Query) -> Response:
    times = {source: answer.elapsed_ms for source, answer in comparison.answers.items()}
    fastest = sorted(times.values())
    sources = (*comparison.answers, *comparison.missing)
    return _json(
        {
            "comparison": {
                **{f"{source}_ms": round(times[source], 3) if source in times else None for source in sources},
                "faster": min(times, key=times.__getitem__),
                "difference_ms": round(fastest[1] - fastest[0], 3) if len(fastest) > 1 else None,
            },
            **{source: _compared(comparison, source, query) for source in sources},
            "as_of": comparison.as_of,
            "answers_agree": comparison.agree,
            "missing": comparison.missing,
            "total_ms": round(comparison.total_ms, 3),
        }
    )


def _compared(comparison: Comparison, source: str, query: Query) -> dict[str, Any]:
    answer = comparison.answers.get(source)
    if answer is None:
        return {"count": None, "total": None}
    return {
        "count": len(answer.rows),
        # Rows counted, where the answer is made of counts.
        "total": answer.total if isinstance(query, ListQuery) else sum(row[-1] for row in answer.rows),
        "digest": comparison.digests[source],
        "method": answer.method,
        "scanned": answer.scanned,
    }


def _head(reply: Reply) -> dict[str, Any]:
    answer: QueryResult = reply.answer
    return {
        "source": reply.source,
        **_times([answer]),
        "as_of": reply.as_of,
        "method": answer.method,
        "scanned": answer.scanned,
        "total_ms": round(reply.total_ms, 3),
    }


def _times(answers: Sequence[QueryResult]) -> dict[str, float]:
    """What this reply took; with an answer from the cache also what it took when the stores gave it."""
    times = {"query_time_ms": round(sum(answer.elapsed_ms for answer in answers), 3)}
    if any(answer.first_ms is not None for answer in answers):
        first = sum(answer.elapsed_ms if answer.first_ms is None else answer.first_ms for answer in answers)
        times["first_query_time_ms"] = round(first, 3)
    return times


def _objects(dataset: Dataset, rows: Sequence[Row]) -> list[dict[str, Any]]:
    columns = (ID, *dataset.columns, CREATED_AT)
    # Stored rows are id, created_at, columns; the contract has created_at last.
    position = {name: index for index, name in enumerate(dataset.column_names)}
    made = [(c.wire, position[c.name], _presented(c)) for c in columns]
    return [{wire: present(row[index]) for wire, index, present in made} for row in rows]


def _presented(column: Column) -> Callable[[Any], Any]:
    if column.kind == "json":
        return _raw
    if column.kind == "timestamp":
        return _epoch_seconds if column.wire == "timestamp" else _iso
    return _same


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def _epoch_seconds(microseconds: int) -> float:
    return microseconds / 1e6


def _iso(microseconds: int) -> str:
    return to_datetime(microseconds).isoformat(timespec="microseconds")


def _same(value: Any) -> Any:
    return value


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
