"""How request footprints are invented."""

from collections.abc import Mapping

from services.generator.rules import By, Choice, Now, Numbered, Rule

_ROUTES = ("/api/users/{id}", "/api/orders/{id}", "/api/products/{id}")

RULES: Mapping[str, Rule] = {
    "method": Choice(("GET", "POST", "PUT", "DELETE"), (0.6, 0.25, 0.1, 0.05)),
    "link": By(
        "route",
        {route: Numbered(1, 1000, prefix=route.removesuffix("{id}")) for route in _ROUTES},
        Choice(("/api/search",)),
    ),
    "footprint_time": Now(),
    "status": Choice((200, 201, 404, 500), (0.85, 0.1, 0.03, 0.02)),
    "duration_ms": Numbered(1, 500),
    "route": Choice((*_ROUTES, "/api/search"), (0.4, 0.3, 0.2, 0.1)),
    "service": Choice(("user-service", "order-service", "search-service", "api-gateway")),
}
