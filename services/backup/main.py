"""The commands `logpipe backup` and `logpipe restore`: parse, wire, run."""

from pathlib import Path

import click

from services.backup import fitting, making, restoring
from services.backup import folder as files
from services.core.errors import LogpipeError
from services.runtime import logs
from services.runtime.settings import KafkaSettings, PostgresSettings


class RestoreSettings(PostgresSettings, KafkaSettings):
    """The settings of a restore, beside those that each store reads."""


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--keep", metavar="N", type=click.IntRange(1), help="Afterwards delete all but the newest N backups.")
def backup(folder: Path, keep: int | None) -> None:
    """Back up PostgreSQL, with the ledger, into a new folder in FOLDER. The pipeline goes on meanwhile.

    Every other store can be refilled from PostgreSQL, and needs no backup.
    """
    settings = PostgresSettings()
    logs.configure("backup", settings.log_level)
    try:
        made = making.make(settings.postgres_url.get_secret_value(), folder)
        click.echo(f"backup written to {made}")
        for old in files.keep(folder, keep) if keep else ():
            click.echo(f"{old} deleted")
    except (LogpipeError, OSError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--store", "names", multiple=True, help="A store in use; may be repeated. Default: all.")
@click.confirmation_option(prompt="Is the pipeline stopped, and is what PostgreSQL has now to be replaced?")
def restore(folder: Path, names: tuple[str, ...]) -> None:
    """Restore the backup in FOLDER, or the newest one of those in FOLDER.

    Start PostgreSQL, Kafka and the stores before, and no process of the pipeline. A database that has rows is kept
    under another name. Afterwards, `logpipe replay` refills the other stores.
    """
    settings = RestoreSettings()
    logs.configure("restore", settings.log_level)
    try:
        found = files.find(folder)
        url, stores = settings.postgres_url.get_secret_value(), fitting.filled(names)
        done = restoring.restore(url, settings.kafka_url, found, stores)
    except (LogpipeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for line in done.told():
        click.echo(line)
