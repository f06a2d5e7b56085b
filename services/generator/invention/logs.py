"""How application log lines are invented."""

from collections.abc import Mapping

from services.generator.rules import By, Choice, Now, Numbered, Object, Rule, Uuid

_REQUEST: Mapping[str, Rule] = {
    "request_id": Uuid(),
    "response_time_ms": Numbered(10, 500),
    "status_code": Choice((200,)),
    "endpoint": Choice(("/api/users", "/api/orders", "/api/products", "/api/payments", "/api/search", "/api/cart")),
    "method": Choice(("GET", "POST", "PUT", "DELETE"), (0.6, 0.25, 0.1, 0.05)),
}
_FAILED_REQUEST: Mapping[str, Rule] = {
    **_REQUEST,
    "response_time_ms": Numbered(500, 5000),
    "status_code": Choice((400, 500, 502, 503)),
}

RULES: Mapping[str, Rule] = {
    "timestamp": Now(),
    "level": Choice(("INFO", "DEBUG", "WARN", "ERROR"), (0.65, 0.2, 0.1, 0.05)),
    "service": Choice(
        (
            "user-service",
            "order-service",
            "payment-service",
            "inventory-service",
            "notification-service",
            "search-service",
            "auth-service",
            "api-gateway",
        )
    ),
    "host": Numbered(1, 3, prefix="worker-"),
    "message": By(
        "level",
        {
            "ERROR": Choice(
                (
                    "Database connection timeout after 5000 ms",
                    "Upstream answered 502, giving up after 3 attempts",
                    "Payment provider refused the transaction",
                    "Out of stock while the order was being placed",
                    "Unhandled exception in the request handler",
                )
            ),
            "WARN": Choice(
                (
                    "Slow query took longer than the threshold",
                    "Cache miss rate above 20 percent",
                    "Retrying the request after a connection reset",
                    "Connection pool is nearly exhausted",
                )
            ),
        },
        Choice(
            (
                "Request processed",
                "User authenticated",
                "Order created and queued for fulfilment",
                "Cache refreshed",
                "Search answered from the index",
                "Session opened",
                "Configuration reloaded",
            )
        ),
    ),
    "metadata": By("level", {"ERROR": Object(_FAILED_REQUEST)}, Object(_REQUEST)),
}
