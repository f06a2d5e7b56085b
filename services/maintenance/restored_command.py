"""The command `logpipe ledger-restored`: parses, wires, runs."""

from contextlib import closing

import click

from services.core.errors import LogpipeError
from services.ledger import restore, schema
from services.postgres.connection import connect
from services.runtime import logs
from services.runtime.settings import PostgresSettings


@click.command()
def main() -> None:
    """Make a ledger fit for use that was restored from a backup. Run it once, before any process is started.

    Batch ids go on above all that were ever given out, and every store that is filled by stream-to-store has to be
    replayed.
    """
    logs.configure("ledger-restored", "ERROR")
    try:
        with closing(connect(PostgresSettings().postgres_url.get_secret_value())) as connection:
            schema.prepare(connection)
            first = restore.after_restore(connection)
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"the ledger has a new identity; its batches go on at {first}")
    click.echo("next: `logpipe replay --store STORE` for each store that is filled by stream-to-store, then start it")
