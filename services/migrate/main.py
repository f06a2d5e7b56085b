"""The command `logpipe migrate`: parses, wires, runs."""

import click

from services.core.errors import LogpipeError
from services.migrate.service import migrate
from services.runtime import logs
from services.runtime.settings import PostgresSettings


@click.command()
def main() -> None:
    """Bring the tables in PostgreSQL to this release: the migrations of every room, then the table of each dataset.

    Run it once before the processes of a release start; running it again changes nothing. Processes of the release
    before this one go on meanwhile.
    """
    settings = PostgresSettings()
    logs.configure("migrate", settings.log_level)
    try:
        applied = migrate(settings.postgres_url.get_secret_value())
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error
    for name in applied:
        click.echo(f"migration {name} applied")
    click.echo("all tables are those of this release")
