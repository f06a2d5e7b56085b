"""`logpipe alerting`: parses, wires, runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import click
import httpx
from fastapi import FastAPI

from services.alerting.book import Policy
from services.alerting.rules import DEFAULT_RULES, load
from services.alerting.settings import AlertingSettings
from services.alerting.watcher import Watcher
from services.alerting.webhook import TIMEOUT_SECONDS, Poster, Webhooks
from services.core.errors import NeedsOperator
from services.datasets.logs import DATASET
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.workers import Workers
from services.streams import kafka, topics
from services.streams.loop import GroupLoop

STOP_SECONDS = 15


@click.command()
def main() -> None:
    """Open an alert when a service has too many errors, resolve it when they have ended, post both to a webhook."""
    settings = AlertingSettings()
    logs.configure("alerting", settings.log_level)
    try:
        app = create_app(settings)
    except NeedsOperator as error:
        raise click.ClickException(str(error)) from error
    serve(app, settings.host, settings.alerting_port)


def create_app(settings: AlertingSettings) -> FastAPI:
    """Return the app. Raises NeedsOperator if the rules are wrong."""
    rules = load(settings.alert_rules or DEFAULT_RULES)
    url = settings.postgres_url.get_secret_value()
    webhooks = Webhooks(rules, settings.alert_webhook)
    policy = Policy(rules, webhooks.known, settings.kafka_partitions, settings.alert_max_age)
    assert DATASET.alert is not None
    topic = DATASET.alert.topic
    readiness = Readiness()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        reader = kafka.KafkaGroupReader(settings.kafka_url, topic, "logpipe-alerting")
        watcher = Watcher(DATASET, policy, reader, url, partial(topics.ensure, settings, [topic]))
        loop = GroupLoop("alerts", reader, watcher)
        readiness.add("alerts", loop.health)
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            workers = Workers(loop.worker(), Poster(url, webhooks, client).worker())
            workers.start()
            yield
            await asyncio.to_thread(workers.stop, STOP_SECONDS)

    return make_app("Alerting", settings, [], lifespan, readiness)
