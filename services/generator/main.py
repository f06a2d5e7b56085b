"""`logpipe generator`: parses, wires, runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click
from fastapi import FastAPI

from services.generator.endpoints import router
from services.generator.service import Generator
from services.generator.settings import GeneratorSettings
from services.ingest_client.client import IngestClient
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve

SETTLE_SECONDS = 3


@click.command()
def main() -> None:
    """Make rows and send them to the ingest API, on a schedule or in bursts."""
    settings = GeneratorSettings()
    logs.configure("generator", settings.log_level)
    serve(create_app(settings), settings.host, settings.generator_port)


def create_app(settings: GeneratorSettings) -> FastAPI:
    token = settings.token.get_secret_value() if settings.token else ""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with IngestClient(settings.ingest_url, token) as client:
            generator = Generator(client, settings.generator_seed)
            app.state.generator = generator
            yield
            await generator.close(SETTLE_SECONDS)

    return make_app("Generator", settings, [router], lifespan, Readiness())
