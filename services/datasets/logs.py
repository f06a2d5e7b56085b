"""Application log lines."""

from services.core.dataset import Alert, By, Choice, Column, Dataset, Now, Numbered, Object, Synthesis, Uuid

_REQUEST: dict[str, Synthesis] = {
    "request_id": Uuid(),
    "response_time_ms": Numbered(10, 500),
    "status_code": Choice((200,)),
    "endpoint": Choice(("/api/users", "/api/orders", "/api/products", "/api/payments", "/api/search", "/api/cart")),
    "method": Choice(("GET", "POST", "PUT", "DELETE"), (0.6, 0.25, 0.1, 0.05)),
}
_FAILED: dict[str, Synthesis] = {
    **_REQUEST,
    "response_time_ms": Numbered(500, 5000),
    "status_code": Choice((400, 500, 502, 503)),
}

DATASET = Dataset(
    name="logs",
    singular="log",
    plural="logs",
    topic="logs.raw",
    key="service",
    time="timestamp",
    columns=(
        Column("timestamp", "timestamp", Now(), required=True),
        Column("level", "category", Choice(("INFO", "DEBUG", "WARN", "ERROR"), (0.65, 0.2, 0.1, 0.05)), required=True),
        Column(
            "service",
            "category",
            Choice(
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
            required=True,
        ),
        Column("host", "category", Numbered(1, 3, prefix="worker-")),
        Column(
            "message",
            "text",
            By(
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
        ),
        Column("metadata", "json", By("level", {"ERROR": Object(_FAILED)}, Object(_REQUEST))),
    ),
    groupings=("level", "service", "host"),
    orderings=("timestamp", "level", "service", "created_at", "id"),
    filters=("level", "service", "host"),
    alert=Alert("alerts.realtime", "level", "ERROR"),
    search="message",
)
