"""How request footprints are invented: the web traffic of a shop in Seoul.

A few routes have most of the requests. Evenings are busy, nights are quiet, weekends are quieter than weekdays, and a
job that begins at 01:15 sends a burst for two minutes each night.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from services.generator.rhythm import MINUTES, Rhythm
from services.generator.rules import By, Choice, Constant, Now, Numbered, Rule


@dataclass(frozen=True, slots=True)
class _Route:
    """`typical_ms`: the median duration. `failing`: the share of requests that end in status 500. `ids`: 0 for none."""

    service: str
    template: str
    methods: Mapping[str, float]
    typical_ms: int
    failing: float = 0.002
    ids: int = 0

    @property
    def link(self) -> Rule:
        if not self.ids:
            return Constant(self.template)
        return Numbered(1, self.ids, prefix=self.template.removesuffix("{id}"))

    @property
    def status(self) -> Rule:
        missing = 0.03 if self.ids else 0.0
        refused = 0.08 if self.service == "auth-service" else 0.004
        done = 1 - missing - refused - self.failing
        return Choice((200, 404, 401, 500), (done, missing, refused, self.failing))

    @property
    def duration_ms(self) -> Rule:
        """Log-normal: one request of a hundred takes four times the median."""
        quantiles = NormalDist(0, 0.9).quantiles(200)
        return Choice(tuple(max(1, round(self.typical_ms * 2**quantile)) for quantile in quantiles))


_GET, _POST = {"GET": 1.0}, {"POST": 1.0}
_ROUTES = (
    _Route("catalog-service", "/api/products/{id}", _GET, 12, ids=20_000),
    _Route("catalog-service", "/api/products", _GET, 35),
    _Route("search-service", "/api/search", _GET, 80),
    _Route("cart-service", "/api/cart", {"GET": 0.6, "POST": 0.3, "DELETE": 0.1}, 15),
    _Route("auth-service", "/api/sessions", {"POST": 0.8, "DELETE": 0.2}, 60),
    _Route("user-service", "/api/users/{id}", {"GET": 0.9, "PUT": 0.1}, 9, ids=50_000),
    _Route("order-service", "/api/orders/{id}", _GET, 18, ids=80_000),
    _Route("order-service", "/api/orders", {"GET": 0.5, "POST": 0.5}, 140, failing=0.01),
    _Route("payment-service", "/api/payments", _POST, 420, failing=0.03),
    _Route("catalog-service", "/api/categories/{id}", _GET, 20, ids=40),
    _Route("review-service", "/api/reviews", {"GET": 0.85, "POST": 0.15}, 30),
    _Route("notification-service", "/api/notifications", _GET, 7),
    _Route("user-service", "/api/addresses", {"GET": 0.6, "POST": 0.3, "PUT": 0.1}, 14),
    _Route("order-service", "/api/returns", _POST, 95),
    _Route("report-service", "/api/reports/daily", _GET, 1800, failing=0.05),
)

RULES: Mapping[str, Rule] = {
    "method": By(
        "route",
        {each.template: Choice(tuple(each.methods), tuple(each.methods.values())) for each in _ROUTES},
        Constant("GET"),
    ),
    "link": By("route", {each.template: each.link for each in _ROUTES}, Constant("/")),
    "footprint_time": Now(),
    "status": By("route", {each.template: each.status for each in _ROUTES}, Constant(200)),
    "duration_ms": By("route", {each.template: each.duration_ms for each in _ROUTES}, Constant(1)),
    "route": Choice(
        tuple(each.template for each in _ROUTES),
        tuple(1 / rank for rank in range(1, len(_ROUTES) + 1)),  # Zipf
    ),
    "service": By("route", {each.template: Constant(each.service) for each in _ROUTES}, Constant("shop")),
}

_SEOUL = 9 * 60  # minutes ahead of UTC, all year
_HOURS = (5, 3, 2, 2, 2, 3, 6, 12, 18, 21, 22, 24, 28, 26, 23, 22, 22, 24, 28, 34, 40, 42, 30, 14)
_DAYS = (1.0, 1.0, 1.0, 1.0, 1.1, 0.7, 0.6)  # from Monday
_BURST, _BURST_FACTOR = range(75, 77), 25.0


def _busy(minute: int) -> float:
    """How busy a minute of the week in Seoul is."""
    day, of_day = divmod(minute, 24 * 60)
    hour, of_hour = divmod(of_day, 60)
    between = of_hour / 60
    weight = _HOURS[hour] * (1 - between) + _HOURS[(hour + 1) % 24] * between
    return weight * _DAYS[day] * (_BURST_FACTOR if of_day in _BURST else 1.0)


RHYTHM = Rhythm([_busy((minute + _SEOUL) % MINUTES) for minute in range(MINUTES)])
