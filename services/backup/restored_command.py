"""The command `logpipe ledger-restored`: parses, wires, runs."""

from contextlib import closing

import click

from services.alerts import repository as alerts
from services.backup import fitting
from services.core.errors import LogpipeError
from services.ledger import restore, schema
from services.postgres.connection import connect
from services.runtime import logs
from services.runtime.settings import PostgresSettings


@click.command()
@click.confirmation_option(prompt="Was PostgreSQL restored from a backup? Every position of a store is dropped")
def main() -> None:
    """Make a ledger fit for use that was restored by other means than `logpipe restore`.

    Run it once, before any other process is started. Batch ids go on above all that were ever given out, and every
    store that is filled from Kafka has to be replayed.
    """
    logs.configure("ledger-restored", "ERROR")
    try:
        with closing(connect(PostgresSettings().postgres_url.get_secret_value())) as connection:
            schema.require(connection)
            alerts.require(connection)
            restore.refuse_owners(connection)
            leap = fitting.make_fit(connection, fitting.filled())
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"the ledger has a new identity; its batches go on at {leap.last + 1}")
    click.echo(
        f"stores may hold batches {leap.first} to {leap.last}: accepted after the backup, and lost in PostgreSQL"
    )
    click.echo(
        "next: start the ingest API; run `logpipe replay --store STORE` for each store that is filled from Kafka;"
        " start stream-to-store once the progress shows"
    )
