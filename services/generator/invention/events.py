"""How user activity events are invented."""

from collections.abc import Mapping

from services.generator.rules import By, Choice, Now, Numbered, Object, Rule, Uuid

_PAGES = Choice(("/home", "/products", "/products/detail", "/cart", "/checkout", "/account"))

RULES: Mapping[str, Rule] = {
    "event_id": Uuid(),
    "timestamp": Now(),
    "user_id": Numbered(1, 1000, prefix="user_"),
    "session_id": Numbered(1, 5000, prefix="session_"),
    "event_type": Choice(("CLICK", "VIEW", "PURCHASE", "SEARCH"), (0.4, 0.4, 0.05, 0.15)),
    "event_data": By(
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
    "device": Object(
        {
            "type": Choice(("mobile", "desktop", "tablet"), (0.55, 0.35, 0.1)),
            "os": Choice(("iOS", "Android", "Windows", "macOS", "Linux")),
            "browser": Choice(("Chrome", "Safari", "Firefox", "Edge")),
        }
    ),
}
