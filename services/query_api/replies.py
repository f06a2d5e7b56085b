"""The bodies of replies, with the names, times and JSON columns of the HTTP contract."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import Response

from services.core.dataset import CREATED_AT, ID, Column, Dataset
from services.core.instants import to_datetime
from services.core.lines import UNDECODABLE
from services.core.queries import BUCKETS, AggregateQuery, ListQuery, Query, QueryResult
from services.core.rows import Row
from services.query_api.cursor import Cursor
from services.query_api.service import Comparison, Reply, Stats

_BUCKETS = {width: name for name, width in BUCKETS.items()}
_one_value = msgspec.json.Decoder(msgspec.Raw).decode


def rows_reply(reply: Reply, query: ListQuery) -> Response:
    result = reply.result
    counted = {} if result.total is None else {"total_count": result.total}
    # A full page may be the last one; only the next page shows that.
    more = len(result.rows) == query.limit
    following = {"next_cursor": Cursor.after(result.rows[-1], query, reply.as_of).encode()} if more else {}
    return json_reply(
        {
            **reply_head(reply),
            **counted,
            "returned_count": len(result.rows),
            "limit": query.limit,
            "offset": query.offset,
            **following,
            "data": _objects(query.dataset, result.rows),
        }
    )


def aggregate_reply(reply: Reply, query: AggregateQuery) -> Response:
    grouped = query.group_by and query.dataset.by_name[query.group_by].wire
    names: list[str] = [*(["time"] if query.bucket else []), *(["key"] if grouped else []), "count"]
    counts = [dict(zip(names, row, strict=True)) for row in reply.result.rows]
    data = [{**count, "time": iso(count["time"])} for count in counts] if query.bucket else counts
    bucket = {"bucket": _BUCKETS[query.bucket]} if query.bucket else {}
    return json_reply({**reply_head(reply), "group_by": grouped, **bucket, "data": data})


def stats_reply(stats: Stats) -> Response:
    results = stats.results.values()
    return json_reply(
        {
            "source": stats.reply_name,
            **_times(list(results)),
            **{f"{name}_count": result.rows[0][0] for name, result in stats.results.items()},
            "as_of": stats.as_of,
            "method": "+".join(sorted({result.method for result in results})),
            "scanned": {name: result.scanned for name, result in stats.results.items()},
            "total_ms": round(stats.total_ms, 3),
        }
    )


def comparison_reply(comparison: Comparison, query: Query) -> Response:
    engines = (*comparison.results, *comparison.missing)
    compared = {engine: _compared(comparison, engine, query) for engine in engines}
    return json_reply({**comparison_head(comparison), **compared})


def comparison_head(comparison: Comparison) -> dict[str, Any]:
    """Return the fields of every comparison: which store was faster, and whether the results are equal."""
    times = {engine: result.elapsed_ms for engine, result in comparison.results.items()}
    sorted_times = sorted(times.values())
    engines = (*comparison.results, *comparison.missing)
    return {
        "comparison": {
            **{f"{engine}_ms": round(times[engine], 3) if engine in times else None for engine in engines},
            "faster": min(times, key=times.__getitem__),
            "difference_ms": round(sorted_times[1] - sorted_times[0], 3) if len(sorted_times) > 1 else None,
        },
        "as_of": comparison.as_of,
        "answers_agree": comparison.agree,
        "missing": comparison.missing,
        "total_ms": round(comparison.total_ms, 3),
    }


def _compared(comparison: Comparison, engine: str, query: Query) -> dict[str, Any]:
    result = comparison.results.get(engine)
    if result is None:
        return {"count": None, "total": None}
    return {
        "count": len(result.rows),
        # The sum of the counts, where the result consists of counts.
        "total": result.total if isinstance(query, ListQuery) else sum(row[-1] for row in result.rows),
        "digest": comparison.digests[engine],
        "method": result.method,
        "scanned": result.scanned,
    }


def reply_head(reply: Reply) -> dict[str, Any]:
    result: QueryResult = reply.result
    return {
        "source": reply.reply_name,
        **_times([result]),
        "as_of": reply.as_of,
        "method": result.method,
        "scanned": result.scanned,
        "total_ms": round(reply.total_ms, 3),
    }


def _times(results: Sequence[QueryResult]) -> dict[str, float]:
    """Return the time that this reply took and, for cached results, the time that the store took to compute them."""
    times = {"query_time_ms": round(sum(result.elapsed_ms for result in results), 3)}
    if any(result.first_ms is not None for result in results):
        first = sum(result.elapsed_ms if result.first_ms is None else result.first_ms for result in results)
        times["first_query_time_ms"] = round(first, 3)
    return times


def _objects(dataset: Dataset, rows: Sequence[Row]) -> list[dict[str, Any]]:
    columns = (ID, *dataset.columns, CREATED_AT)
    # A stored row is id, created_at, columns; the contract has created_at last.
    position = {name: index for index, name in enumerate(dataset.column_names)}
    made = [(c.wire, position[c.name], _presented(c)) for c in columns]
    return [{wire: present(row[index]) for wire, index, present in made} for row in rows]


def _presented(column: Column) -> Callable[[Any], Any]:
    """HTTP contract: a column `timestamp` is in seconds, every other time is ISO 8601."""
    if column.kind == "json":
        return _json
    if column.kind == "timestamp":
        return _epoch_seconds if column.wire == "timestamp" else iso
    return _same


def _json(text: str) -> msgspec.Raw | str:
    """Return a text that is JSON as it is, and any other as a string.

    The ingest API accepts JSON only. A store takes any text from a message of another program.
    """
    try:
        return _one_value(text)
    except UNDECODABLE:
        return text


def _epoch_seconds(microseconds: int) -> float:
    return microseconds / 1e6


def iso(microseconds: int) -> str:
    return to_datetime(microseconds).isoformat(timespec="microseconds")


def _same(value: Any) -> Any:
    return value


def json_reply(body: Mapping[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
