"""`logpipe bench figures`: parses, measures, publishes."""

import tempfile
from pathlib import Path

import click
from rich.console import Console

from services.bench.cases import figures, footprints, generator, growth, ingest, read, sustained
from services.local.settings import LakeWriter

_CASES = ("generator", "ingest", "sustained", "sustained-embedded", "read", "growth", "footprints")


@click.command("figures")
@click.option("--only", type=click.Choice(_CASES), multiple=True, help="Only this; may be repeated.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Runs of each pair.")
@click.option("--seconds", default=60, show_default=True, type=click.IntRange(10), help="How long a rate is held.")
@click.option("--rate", "rates", multiple=True, type=int, default=(30_000, 45_000, 60_000), help="Rows/s, rising.")
@click.option("--rows", default=10_000_000, show_default=True, type=click.IntRange(1000), help="Logs to read.")
@click.option("--batches", default=50_000_000, show_default=True, type=click.IntRange(100), help="Planted by growth.")
@click.option(
    "--days", default=400, show_default=True, type=click.IntRange(2), help="Day partitions planted by growth."
)
@click.option(
    "--log-files", default=100_000, show_default=True, type=click.IntRange(0), help="Of the lake, planted by growth."
)
@click.option(
    "--footprints",
    "sizes",
    multiple=True,
    type=click.IntRange(1000, 10_000_000),
    default=(10_000, 100_000, 1_000_000),
    help="Footprints to read; may be repeated, and each has a stack of its own.",
)
@click.option("--into", default="docs/benchmarks", show_default=True, help="Folder for the results.")
def command(
    only: tuple[str, ...],
    runs: int,
    seconds: int,
    rates: tuple[int, ...],
    rows: int,
    batches: int,
    days: int,
    log_files: int,
    sizes: tuple[int, ...],
    into: str,
) -> None:
    """Measure the figures of the table of goals, each on a stack of its own, and write them as tables."""
    console = Console(highlight=False)
    for case in only or _CASES:
        console.rule(case)
        matrices: list[figures.Matrix] = []
        tables: list[figures.Table] = []
        with tempfile.TemporaryDirectory(prefix="logpipe-bench-") as name:
            Path(name).chmod(0o755)  # in a closed folder, PostgreSQL's data would lie outside, and would be left behind
            match case:
                case "generator":
                    found = generator.measure(runs)
                case "ingest":
                    found = ingest.measure(Path(name), runs, console.print)
                case "growth":
                    found = growth.measure(Path(name), batches, days, log_files, max(runs, 21), console.print)
                case "read":
                    found, matrices = read.measure(Path(name), rows, max(runs, 7), console.print)
                case "footprints":
                    found = []
                    matrices, tables = footprints.measure(Path(name), sorted(sizes), max(runs, 7), console.print)
                case _:
                    writer: LakeWriter = "embedded" if case == "sustained-embedded" else "spark"
                    found = sustained.measure(Path(name), writer, sorted(rates), seconds, console.print)
        page = figures.publish(Path(into), case, found, matrices, tables)
        console.print(page.read_text())
