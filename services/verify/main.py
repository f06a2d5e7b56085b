"""The command `logpipe verify`."""

import secrets
import sys
from contextlib import ExitStack, closing

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services import datasets, stores
from services.core.errors import LogpipeError
from services.postgres.pool import Pool
from services.runtime import logs
from services.runtime.settings import KafkaSettings, PostgresSettings
from services.streams.dead_letters import TOPIC
from services.streams.kafka import KafkaPartitionReader
from services.verify import report
from services.verify.dead_letters import DeadLetterLookup
from services.verify.service import Options, Verification

_CHECKSUMS = 100  # batches whose checksums are compared by default
_WIDTH = 110  # of a report that is not shown on a terminal


class VerifySettings(PostgresSettings, KafkaSettings):
    """Beside these, each store reads its own."""


@click.command()
@click.option("--store", "store_names", multiple=True, help="Only this store; may be repeated.")
@click.option("--dataset", "dataset_names", multiple=True, help="Only this dataset; may be repeated.")
@click.option(
    "--sample", metavar="N", type=click.IntRange(1), help="Look at N batches of each dataset only, chosen at random."
)
@click.option(
    "--days", metavar="N", type=click.FloatRange(0, min_open=True), help="Only batches accepted in the last N days."
)
@click.option("--all", "everything", is_flag=True, help="Compare the checksums of all batches, not only of 100.")
@click.option("--seed", type=int, help="Chooses the sample; random when not given, and always printed.")
@click.option("--wait", default=0.0, metavar="SECONDS", help="Give the stores this long to load what was accepted.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    store_names: tuple[str, ...],
    dataset_names: tuple[str, ...],
    sample: int | None,
    days: float | None,
    everything: bool,
    seed: int | None,
    wait: float,
    as_json: bool,
) -> None:
    """Reconcile the stores against the ledger by really reading them.

    Without --sample all rows are counted. A sample takes seconds at any size; other batches may differ.

    Exits with 1 when anything is missing, extra, duplicated or different, with 2 when something could not be checked.
    """
    if sample is not None and everything:
        raise click.UsageError("--sample and --all exclude each other")
    settings = VerifySettings()
    logs.configure("verify", "ERROR")
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    try:
        with ExitStack() as open_, Progress(*columns, console=console, transient=True) as progress:
            ledger = open_.enter_context(closing(Pool(settings.postgres_url.get_secret_value())))
            readers = [
                open_.enter_context(closing(stores.open_reader(name))) for name in store_names or stores.readers()
            ]
            options = Options(
                [datasets.find(name) for name in dataset_names] or datasets.all_datasets(),
                None if everything else _CHECKSUMS,
                secrets.randbelow(1 << 31) if seed is None else seed,
                wait,
                sample,
                days,
            )
            lookup = DeadLetterLookup(ledger, lambda: KafkaPartitionReader(settings.kafka_url, TOPIC))
            found = Verification(ledger, lookup, progress).run(readers, options)
    except LogpipeError as error:
        console.print(f"[bold red]could not check[/bold red]: {escape(str(error))}", highlight=False)
        sys.exit(2)
    if as_json:
        click.echo(report.as_json(found))
    else:
        report.show(found, Console(width=None if sys.stdout.isatty() else _WIDTH))
    sys.exit(found.exit_code)
