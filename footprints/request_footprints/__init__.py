"""Request footprints: one JSON message to Kafka for each HTTP request of an ASGI app.

    from request_footprints import FootprintMiddleware

    app.add_middleware(FootprintMiddleware, service="shop")

`middleware` notes a request on the event loop: two clock reads and one append. `recorder` runs a background thread that
turns the notes into messages (`footprint`) and hands them to a producer (`producer` is the port, `kafka` the adapter,
`memory` the fake for tests). `settings` has all settings, `counting` what became of the footprints.
"""

from request_footprints.counting import Counts, counts
from request_footprints.middleware import FootprintMiddleware

__all__ = ["Counts", "FootprintMiddleware", "counts"]
