"""User activity events (the "activity" of the HTTP contract)."""

from services.core.dataset import By, Choice, Column, Dataset, Now, Numbered, Object, Uuid

_PAGES = Choice(("/home", "/products", "/products/detail", "/cart", "/checkout", "/account"))

DATASET = Dataset(
    name="events",
    singular="activity",
    plural="activities",
    topic="events.activity",
    key="user_id",
    time="timestamp",
    columns=(
        Column("event_id", "uuid", Uuid(), wire="eventId", required=True),
        Column("timestamp", "timestamp", Now(), required=True),
        Column("user_id", "text", Numbered(1, 1000, prefix="user_"), wire="userId", required=True),
        Column("session_id", "text", Numbered(1, 5000, prefix="session_"), wire="sessionId"),
        Column(
            "event_type",
            "category",
            Choice(("CLICK", "VIEW", "PURCHASE", "SEARCH"), (0.4, 0.4, 0.05, 0.15)),
            wire="eventType",
            required=True,
        ),
        Column(
            "event_data",
            "json",
            By(
                "event_type",
                {
                    "CLICK": Object(
                        {
                            "page": _PAGES,
                            "element": Choice(("button", "link", "image", "menu")),
                            "position": Object({"x": Numbered(0, 1920), "y": Numbered(0, 1080)}),
                        }
                    ),
                    "VIEW": Object({"page": _PAGES, "duration_seconds": Numbered(1, 300)}),
                    "PURCHASE": Object(
                        {
                            "product_id": Numbered(1, 500, prefix="product_"),
                            "quantity": Numbered(1, 5),
                            "price": Numbered(1, 1000),
                        }
                    ),
                    "SEARCH": Object(
                        {
                            "query": Choice(("laptop", "phone", "headphones", "keyboard", "monitor", "desk lamp")),
                            "results_count": Numbered(0, 200),
                        }
                    ),
                },
                Object({}),
            ),
            wire="eventData",
        ),
        Column(
            "device",
            "json",
            Object(
                {
                    "type": Choice(("mobile", "desktop", "tablet"), (0.55, 0.35, 0.1)),
                    "os": Choice(("iOS", "Android", "Windows", "macOS", "Linux")),
                    "browser": Choice(("Chrome", "Safari", "Firefox", "Edge")),
                }
            ),
        ),
        Column("device_type", "category", wire="deviceType", derived_from=("device", "type")),
    ),
    groupings=("event_type", "device_type"),
    orderings=("timestamp", "event_type", "user_id", "created_at", "id"),
    filters=("event_type", "user_id", "device_type"),
)
