"""The routes of the query API: three for each dataset, made from its description, and one for all datasets."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi import Query as QueryString

from services.core.dataset import Dataset
from services.core.errors import Invalid
from services.query_api.disconnection import while_connected
from services.query_api.parameters import (
    CompareParameters,
    OneStoreAggregate,
    OneStoreList,
    StatsParameters,
    aggregate_parameters,
    compare_parameters,
    list_parameters,
)
from services.query_api.replies import aggregate_reply, comparison_reply, rows_reply, stats_reply
from services.query_api.service import QueryService
from services.runtime.http import needs

COMPARED_BY_DEFAULT = "logs"

_PROBLEM = {"application/problem+json": {"schema": {"type": "object", "required": ["title", "status", "detail"]}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": _PROBLEM}
    for status, description in (
        (401, "no token, or a wrong one"),
        (422, "not acceptable; the detail says what is"),
        (503, "a store is down or overloaded; `store` names it"),
        (504, "the query took too long"),
    )
}


async def _service(request: Request) -> QueryService:
    service: QueryService = request.app.state.service
    return service


Service = Annotated[QueryService, Depends(_service)]
StoreWord = Annotated[
    str, Path(description="the store's word in URLs; an unknown one is refused with those that exist")
]


def router(datasets: Sequence[Dataset]) -> APIRouter:
    """Return all routes. A request with an unknown store or dataset is refused with those that exist."""
    routes = APIRouter(prefix="/api/query", dependencies=[needs("read")], responses=PROBLEMS)
    for dataset in datasets:
        _add_compare(routes, f"/compare/{dataset.name}", dataset)
        if dataset.name == COMPARED_BY_DEFAULT:
            _add_compare(routes, "/compare", dataset)

    @routes.get("/{store}/stats", tags=["all datasets"], summary="Rows of each dataset")
    async def stats(
        request: Request, store: StoreWord, parameters: Annotated[StatsParameters, QueryString()], service: Service
    ) -> Response:
        running = service.stats(
            store, parameters.as_of, parameters.engine, scan=parameters.scan, use_cache=parameters.use_cache
        )
        return stats_reply(await while_connected(request, running))

    for dataset in datasets:
        _add_queries(routes, dataset)

    @routes.get("/{store}/{dataset}", include_in_schema=False)
    @routes.get("/{store}/{dataset}/aggregate", include_in_schema=False)
    async def unknown(store: str, dataset: str) -> Response:
        raise Invalid(f"unknown dataset {dataset!r}; there are: {', '.join(d.name for d in datasets)}")

    return routes


def _add_compare(routes: APIRouter, path: str, dataset: Dataset) -> None:
    model = compare_parameters(dataset)

    @routes.get(
        path, tags=[dataset.name], summary=f"The same query about {dataset.name} to every store, and whether all agree"
    )
    async def compare(
        request: Request,
        parameters: Annotated[model, QueryString()],  # type: ignore[valid-type]
        service: Service,
    ) -> Response:
        parsed: CompareParameters = parameters
        query, as_of = parsed.compared(dataset)
        comparing = service.compare(query, as_of, all_engines=parsed.engines == "all")
        return comparison_reply(await while_connected(request, comparing), query)


def _add_queries(routes: APIRouter, dataset: Dataset) -> None:
    list_model, aggregate_model = list_parameters(dataset), aggregate_parameters(dataset)

    @routes.get(f"/{{store}}/{dataset.name}", tags=[dataset.name], summary=f"Rows of {dataset.name}, the latest first")
    async def rows(
        request: Request,
        store: StoreWord,
        parameters: Annotated[list_model, QueryString()],  # type: ignore[valid-type]
        service: Service,
    ) -> Response:
        parsed: OneStoreList = parameters
        query, as_of = parsed.listed(dataset)
        make_reply = partial(rows_reply, query=query)
        running = service.query(store, query, make_reply, as_of, parsed.engine, use_cache=parsed.use_cache)
        return await while_connected(request, running)

    @routes.get(
        f"/{{store}}/{dataset.name}/aggregate",
        tags=[dataset.name],
        summary="The number of rows by value, or by minute, hour or day",
    )
    async def aggregate(
        request: Request,
        store: StoreWord,
        parameters: Annotated[aggregate_model, QueryString()],  # type: ignore[valid-type]
        service: Service,
    ) -> Response:
        parsed: OneStoreAggregate = parameters
        query, as_of = parsed.aggregated(dataset)
        make_reply = partial(aggregate_reply, query=query)
        running = service.query(store, query, make_reply, as_of, parsed.engine, use_cache=parsed.use_cache)
        return await while_connected(request, running)
