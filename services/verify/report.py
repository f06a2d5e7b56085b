"""What `verify` found, for people and for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.verify.reconcile import Result
from services.verify.sources import SourceResult


@dataclass(frozen=True, slots=True)
class Report:
    """`unchecked`: store -> why it could not be checked. `sample`: only so many batches of a dataset were read.

    Batches below `first` were not read.
    """

    as_of: int
    seed: int
    results: Sequence[Result]
    unchecked: Mapping[str, str]
    sample: int | None = None
    first: int = 0
    sources: Sequence[SourceResult] = ()

    @property
    def exit_code(self) -> int:
        """1: something differs; 2: nothing known to differ, but not everything could be checked."""
        if not (all(result.ok for result in self.results) and all(source.ok for source in self.sources)):
            return 1
        return 2 if self.unchecked or not self.results else 0


def as_json(report: Report) -> str:
    body = {
        "ok": report.exit_code == 0,
        "first": report.first,
        "as_of": report.as_of,
        "seed": report.seed,
        "sample": report.sample,
        "results": [{**asdict(result), "ok": result.ok} for result in report.results],
        "sources": [{**asdict(source), "ok": source.ok} for source in report.sources],
        "unchecked": report.unchecked,
    }
    return msgspec.json.encode(body).decode()


def show(report: Report, console: Console) -> None:
    what = "Stores" if report.sample is None else f"A SAMPLE of {report.sample} batches of each dataset in the stores"
    since = f", from batch {report.first}" if report.first else ""
    title = f"{what} against the ledger{since}, up to batch {report.as_of}"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("dataset")
    table.add_column("store")
    for name in ("accepted", "found", "missing", "extra", "duplicated", "dead-lettered", "checksums"):
        table.add_column(name, justify="right")
    table.add_column("")
    for result in report.results:
        counts = (result.missing, result.extra, result.duplicated)
        table.add_row(
            result.dataset,
            result.store,
            f"{result.expected:,}",
            f"{result.found:,}",
            *(f"[red]{count:,}[/red]" if count else "0" for count in counts),
            f"{result.dead_lettered:,}",
            f"{result.compared - result.differing:,}/{result.compared:,}",
            "[green]ok[/green]" if result.ok else "[bold red]differs[/bold red]",
        )
    console.print(table)
    for result in report.results:
        for text in (*result.examples, result.note):
            if text:
                console.print(f"{result.dataset} in {result.store}: {escape(text)}", highlight=False)
    if report.sources:
        _show_sources(report.sources, console)
    for store, reason in report.unchecked.items():
        console.print(f"[bold red]{store} could not be checked[/bold red]: {escape(reason)}", highlight=False)
    chosen = (
        "Checksums of complete batches" if report.sample is None else "Other batches were not looked at. The sample"
    )
    console.print(f"{chosen}: chosen by --seed {report.seed}", style="dim", highlight=False)


def _show_sources(sources: Sequence[SourceResult], console: Console) -> None:
    table = Table(title="Foreign topics against the ledger", title_justify="left", box=SIMPLE)
    table.add_column("topic")
    table.add_column("dataset")
    for name in ("lines", "rows", "dead letters", "found"):
        table.add_column(name, justify="right")
    table.add_column("")
    for source in sources:
        numbers = (source.lines, source.rows, source.dead_letters)
        table.add_row(
            source.topic,
            source.dataset,
            *(f"{number:,}" for number in numbers),
            "" if source.found is None else f"{source.found:,}",
            "[green]ok[/green]" if source.ok else "[bold red]differs[/bold red]",
        )
    console.print(table)
    for source in sources:
        if source.note:
            console.print(f"{source.topic} in {source.dataset}: {escape(source.note)}", highlight=False)
