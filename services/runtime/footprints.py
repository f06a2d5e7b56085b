"""Footprints of the requests to our own processes, by the middleware of the distribution `request-footprints`.

They are off unless LOGPIPE_FOOTPRINTS is set. Kafka and how to prove who we are to it come from the settings of all
processes; what else can be set is a variable FOOTPRINTS_*, see footprints/README.md.
"""

from starlette.applications import Starlette

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
    )
