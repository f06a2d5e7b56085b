"""Footprints of the requests to our own processes, by the middleware of the distribution `request-footprints`.

They are off unless LOGPIPE_FOOTPRINTS is set. A footprint becomes a row, so only a client that may call a route leaves
one: not one without the token, not a page of another origin, and not a probe or a request for a page.

Kafka and how to prove who we are to it come from the settings of all processes; what else can be set is a variable
FOOTPRINTS_*, see footprints/README.md.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Scope

from services.runtime import kafka_security
from services.runtime.settings import FootprintSettings, KafkaSettings


def record(app: Starlette, service: str) -> None:
    """Record each request to the app, if the setting says so. Raises NeedsOperator if the environment lacks one."""
    if not FootprintSettings().footprints:
        return
    from request_footprints import FootprintMiddleware  # loads Kafka's client, which not every process has

    app.add_middleware(
        FootprintMiddleware,
        service=service,
        kafka=KafkaSettings().kafka_url,
        kafka_config=kafka_security.librdkafka(),
        accepts=_is_allowed,
    )


def allow(request: Request) -> None:
    """The client of the request may call its route."""
    request.state.allowed = True


def _is_allowed(scope: Scope) -> bool:
    return bool(scope.get("state", {}).get("allowed", False))
