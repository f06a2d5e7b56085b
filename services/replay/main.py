"""The command `logpipe replay`: parses, wires, runs."""

import sys
import time

import click
from rich.console import Console
from rich.markup import escape

from services import datasets
from services.core.errors import LogpipeError
from services.replay import display
from services.replay.service import Replays
from services.replay.settings import ReplaySettings
from services.runtime import logs


@click.command()
@click.option("--store", required=True, help="The store to refill, e.g. clickhouse.")
@click.option("--dataset", "names", multiple=True, help="A dataset to replay; may be repeated. Default: all.")
@click.option(
    "--from-batch", "first", type=click.IntRange(1), help="Start over at this batch; the store has all before it."
)
def main(store: str, names: tuple[str, ...], first: int | None) -> None:
    """Refill a store from PostgreSQL, exactly once, while rows go on coming in.

    For a store that was wiped or added later, or whose topic lost messages before they were loaded. What the store has
    is left alone. After it was stopped, the same command without --from-batch goes on where it was.
    """
    logs.configure("replay", "ERROR")
    console = Console(stderr=True, highlight=False)
    try:
        chosen = [datasets.find(name) for name in names] or datasets.all_datasets()
        with Replays(ReplaySettings(), store) as replays, display.progress(console) as progress:
            begun = [(dataset, replays.begin(dataset, first, display.Line(progress, dataset))) for dataset in chosen]
            for dataset, refill in begun:
                start = time.monotonic()
                outcome = refill.run()
                click.echo(display.summary(dataset, store, outcome, time.monotonic() - start))
    except LogpipeError as error:
        console.print(f"[bold red]not replayed[/bold red]: {escape(str(error))}")
        sys.exit(1)
