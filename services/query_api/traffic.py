"""The routes of the dashboard of requests: its figures by store and by all stores, and what tells of new rows."""

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi import Query as QueryString

from services.core.dataset import Dataset
from services.core.local_week import by_minute_of_day, by_weekday_and_hour
from services.core.queries import PERCENTILES, Panel, TrafficQuery
from services.core.rows import Row
from services.query_api.changes import Changes
from services.query_api.disconnection import while_connected
from services.query_api.endpoints import PROBLEMS, Service, StoreWord
from services.query_api.replies import comparison_head, iso, json_reply, reply_head
from services.query_api.service import Comparison, Reply
from services.query_api.traffic_parameters import (
    CompareTraffic,
    OneStoreTraffic,
    compare_traffic_parameters,
    traffic_parameters,
)
from services.runtime.http import needs

_COUNTED = ("method", "endpoint", "count")
_MEASURED = (*_COUNTED, *(f"p{percentile}_ms" for percentile in PERCENTILES))


def _now() -> int:
    return time.time_ns() // 1000


def router(dataset: Dataset, now: Callable[[], int] = _now) -> APIRouter:
    """Return the routes about `dataset`, which has the columns of `footprints`. `now`: microseconds since 1970."""
    routes = APIRouter(prefix="/api/query", tags=["traffic"], dependencies=[needs("read")], responses=PROBLEMS)
    one_model, all_model = traffic_parameters(dataset), compare_traffic_parameters(dataset)
    changes = Changes(dataset)

    @routes.get("/stores", summary="The stores that can be queried")
    async def stores(service: Service) -> Response:
        return json_reply(
            {"stores": [{"route": s.route, "source": s.reply_name, "label": s.label} for s in service.stores]}
        )

    @routes.get(f"/compare/{dataset.name}/traffic", summary="A panel of the dashboard by every store")
    async def compare(
        request: Request,
        parameters: Annotated[all_model, QueryString()],  # type: ignore[valid-type]
        service: Service,
    ) -> Response:
        parsed: CompareTraffic = parameters
        query = parsed.asked(dataset, now())
        comparison = await while_connected(request, service.compare(query, parsed.as_of))
        return _comparison_reply(comparison, query, parsed.zone)

    @routes.get(f"/{{store}}/{dataset.name}/traffic", summary="A panel of the dashboard by one store")
    async def panel(
        request: Request,
        store: StoreWord,
        parameters: Annotated[one_model, QueryString()],  # type: ignore[valid-type]
        service: Service,
    ) -> Response:
        parsed: OneStoreTraffic = parameters
        query = parsed.asked(dataset, now())
        make_reply = partial(_reply, query=query, zone=parsed.zone)
        running = service.query(store, query, make_reply, parsed.as_of, parsed.engine, use_cache=parsed.use_cache)
        return await while_connected(request, running)

    @routes.get(
        f"/{{store}}/{dataset.name}/changes",
        summary="Events for as long as the client listens: the batch up to which the store has newly loaded",
        responses={200: {"content": {"text/event-stream": {}}}},
        response_class=Response,
    )
    async def changed(request: Request, store: StoreWord, service: Service) -> Response:
        return changes.stream(request, service, None if store == "compare" else store)

    return routes


def _reply(reply: Reply, query: TrafficQuery, zone: str) -> Response:
    return json_reply({**reply_head(reply), **_described(query, zone), "data": _data(query.panel, reply.result.rows)})


def _comparison_reply(comparison: Comparison, query: TrafficQuery, zone: str) -> Response:
    results = {
        source: {
            "query_time_ms": round(result.elapsed_ms, 3),
            "method": result.method,
            "digest": comparison.digests[source],
            "data": _data(query.panel, result.rows),
        }
        for source, result in comparison.results.items()
    }
    return json_reply({**comparison_head(comparison), **_described(query, zone), "results": results})


def _described(query: TrafficQuery, zone: str) -> dict[str, Any]:
    start, end = query.filters.start, query.filters.end
    assert start is not None
    assert end is not None
    return {"panel": query.panel, "zone": zone, "start_time": iso(start), "end_time": iso(end)}


def _data(panel: Panel, rows: list[Row]) -> Any:
    match panel:
        case "total":
            return {"count": rows[0][0]}
        case "week":
            return {"by_weekday_and_hour": by_weekday_and_hour(rows), "by_minute_of_day": by_minute_of_day(rows)}
        case "endpoints":
            return [dict(zip(_COUNTED, row, strict=True)) for row in rows]
        case "statuses":
            return [{"class": name, "count": count} for name, count in rows]
        case "durations":
            return [dict(zip(_MEASURED, row, strict=True)) for row in rows]
