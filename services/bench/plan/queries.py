"""The queries that plans name: the path and the parameters of each, for the query API."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NEEDLE = "no row has this text"


@dataclass(frozen=True, slots=True)
class Query:
    """`verb`: what a store does, in sentences of the report. `path`: below the store's route."""

    name: str
    verb: str
    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    def result(self, body: Mapping[str, Any], dataset: str) -> Any:
        """Return the part of a reply that every store must return alike."""
        if "data" in body:
            return body["data"]
        return body[f"{dataset}_count"]


def _listed(**parameters: str) -> dict[str, str]:
    return {"count": "none", **parameters}


_ALL = (
    Query("count", "counts all rows", "stats"),
    Query("group-by", "groups by level", "{dataset}/aggregate", {"group_by": "level"}),
    Query(
        "filter-group-by",
        "groups the errors by service",
        "{dataset}/aggregate",
        {"group_by": "service", "level": "ERROR"},
    ),
    Query("by-hour", "counts by hour", "{dataset}/aggregate", {"bucket": "1h"}),
    Query("newest", "lists the newest 100 rows of a service", "{dataset}", _listed(service="auth-service")),
    Query("sort-limit", "sorts by level for the first 100 rows", "{dataset}", _listed(order_by="level")),
    Query("full-scan", "searches every text for one that no row has", "{dataset}", _listed(q=NEEDLE)),
    Query("large-result", "returns 10,000 rows", "{dataset}", _listed(limit="10000")),
)

QUERIES: Mapping[str, Query] = {query.name: query for query in _ALL}
"""By name. They fit datasets with the columns of `logs`."""
