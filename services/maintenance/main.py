"""`logpipe maintain`: parses, wires, runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import click
from fastapi import FastAPI

from services import datasets
from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.ledger import retention_clock, schema
from services.maintenance.rollups import RollupMaintenance
from services.maintenance.schedule import MaintenanceSchedule
from services.maintenance.settings import MaintainSettings
from services.maintenance.tasks import MaintenanceTasks
from services.postgres.connection import connect
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.workers import Workers

STOP_SECONDS = 5


@click.command()
@click.option("--dataset", "names", multiple=True, help="A dataset to maintain; may be repeated. Default: all.")
@click.option(
    "--once",
    is_flag=True,
    help="Run the tasks once, without the rollups, and end. Else they run every LOGPIPE_MAINTAIN_SECONDS.",
)
@click.option("--empty", is_flag=True, help="With --once and --dataset: only drop all rows of a dataset on request.")
@click.option("--trust-clock", is_flag=True, help="With --once: PostgreSQL's clock is right although it has jumped.")
def main(names: tuple[str, ...], once: bool, empty: bool, trust_clock: bool) -> None:
    """Update the rollups, merge the lake's small files, drop days beyond LOGPIPE_RETENTION_DAYS."""
    settings = MaintainSettings()
    if trust_clock and not once:
        raise click.UsageError("--trust-clock goes with --once")
    if empty and not (once and names):
        raise click.UsageError("--empty goes with --once and --dataset")
    logs.configure("maintain", settings.log_level)
    try:
        chosen = tuple(map(datasets.find, names)) or datasets.all_datasets()
        if once:
            run_once(settings, chosen, trust_clock=trust_clock, empty=empty)
        else:
            serve(create_app(settings, chosen), settings.host, settings.maintain_port)
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error


def run_once(settings: MaintainSettings, chosen: tuple[Dataset, ...], *, trust_clock: bool, empty: bool) -> None:
    if trust_clock:
        with connect(settings.postgres_url.get_secret_value()) as connection:
            schema.require(connection)
            retention_clock.now_microseconds(connection, trust_clock=True)
    failed = []
    for dataset in chosen:
        try:
            tasks = MaintenanceTasks(settings, dataset)
            for what in tasks.empty() if empty else tasks.run():
                click.echo(what)
            click.echo(f"{dataset.name}: done")
        except LogpipeError as error:
            failed.append(f"{dataset.name}: {error}")
    if failed:
        raise click.ClickException("\n".join(failed))


def create_app(settings: MaintainSettings, chosen: tuple[Dataset, ...]) -> FastAPI:
    schedule, readiness = MaintenanceSchedule(settings, chosen), Readiness()
    rollups = RollupMaintenance(settings.postgres_url.get_secret_value(), chosen).worker()
    for dataset in chosen:
        readiness.add(dataset.name, partial(schedule.health, dataset.name))
    readiness.add("rollups", rollups.health, degraded=True)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        workers = Workers(schedule.worker(), rollups)
        workers.start()
        yield
        await asyncio.to_thread(workers.stop, STOP_SECONDS)

    return make_app("Maintain", settings, [], lifespan, readiness)
