"""Routes of the query API: three for each dataset, made from its description, and one for all."""

from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel

from services.core.dataset import Dataset
from services.core.errors import Invalid
from services.query_api.parameters import (
    AggregateParameters,
    ListParameters,
    aggregate_parameters,
    list_parameters,
)
from services.query_api.replies import aggregate_reply, comparison_reply, rows_reply, stats_reply
from services.query_api.service import QueryService
from services.runtime.http import needs

COMPARED_BY_DEFAULT = "logs"


def _service(request: Request) -> QueryService:
    service: QueryService = request.app.state.service
    return service


Handler = Callable[..., Response]
Service = Annotated[QueryService, Depends(_service)]
Store = Annotated[str, Path(description="postgres, clickhouse or hdfs")]


def router(datasets: Sequence[Dataset]) -> APIRouter:
    """All routes; whatever `store` or `dataset` does not exist is answered with those that do."""
    routes = APIRouter(prefix="/api/query", dependencies=[needs("read")])
    for dataset in datasets:
        _add_compare(routes, f"/compare/{dataset.name}", dataset)
        if dataset.name == COMPARED_BY_DEFAULT:
            _add_compare(routes, "/compare", dataset)

    @routes.get("/{store}/stats", tags=["all datasets"], summary="Rows of each dataset")
    def stats(store: Store, service: Service) -> Response:
        return stats_reply(service.stats(store))

    for dataset in datasets:
        _add_questions(routes, dataset)

    @routes.get("/{store}/{dataset}", include_in_schema=False)
    @routes.get("/{store}/{dataset}/aggregate", include_in_schema=False)
    def unknown(store: str, dataset: str) -> Response:
        raise Invalid(f"unknown dataset {dataset!r}; there are: {', '.join(d.name for d in datasets)}")

    return routes


def _add_compare(routes: APIRouter, path: str, dataset: Dataset) -> None:
    def compare(parameters: ListParameters, service: Service) -> Response:
        return comparison_reply(service.compare(parameters.question(dataset)))

    summary = f"The same {dataset.name} from every store, and whether they agree"
    routes.get(path, tags=[dataset.name], summary=summary)(_taking(list_parameters(dataset), compare))


def _add_questions(routes: APIRouter, dataset: Dataset) -> None:
    def rows(store: Store, parameters: ListParameters, service: Service) -> Response:
        question = parameters.question(dataset)
        return rows_reply(service.ask(store, question), question)

    def aggregate(store: Store, parameters: AggregateParameters, service: Service) -> Response:
        question = parameters.question(dataset)
        return aggregate_reply(service.ask(store, question), question)

    path = f"/{{store}}/{dataset.name}"
    routes.get(path, tags=[dataset.name], summary=f"Rows of {dataset.name}, the latest first")(
        _taking(list_parameters(dataset), rows)
    )
    routes.get(f"{path}/aggregate", tags=[dataset.name], summary="How many rows have each value")(
        _taking(aggregate_parameters(dataset), aggregate)
    )


def _taking(parameters: type[BaseModel], handler: Handler) -> Handler:
    """The handler, its argument `parameters` read from the query string as this dataset's own model."""
    handler.__annotations__["parameters"] = Annotated[parameters, Query()]
    return handler
