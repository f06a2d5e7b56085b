"""`logpipe disk-space`: parses, wires, runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click
from fastapi import FastAPI
from pydantic import Field

from services.disk_space.endpoints import router
from services.disk_space.folder import Folder
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.settings import ListenSettings, Port


class DiskSpaceSettings(ListenSettings):
    disk_space_port: Port = Field(8090, description="port of `logpipe disk-space`")


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="A folder on the disk to tell about.")
def main(folder: Path) -> None:
    """Serve the free and total bytes of a folder's file system, at /disk as JSON and at /metrics.

    It runs beside a PostgreSQL on another machine than the ingest API, which asks it: LOGPIPE_DISK_SPACE_URL.
    """
    settings = DiskSpaceSettings()
    logs.configure("disk-space", settings.log_level)
    serve(create_app(settings, folder), settings.host, settings.disk_space_port)


def create_app(settings: DiskSpaceSettings, path: Path) -> FastAPI:
    folder, readiness = Folder(path), Readiness()
    readiness.add("folder", folder.health, degraded=True)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    return make_app("Disk space", settings, [router(folder)], lifespan, readiness)
