"""What a replay shows: how far it is, what it waits for, and what came of it."""

from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.core.dataset import Dataset


@dataclass(slots=True)
class Outcome:
    """Rows by outcome. `found`: they were in the store, or dead-lettered, before this replay. `streamed`: the stream
    loads them. `dead_lettered`: this replay sent a dead letter for them.
    """

    written: int = 0
    found: int = 0
    streamed: int = 0
    dead_lettered: int = 0


class Display(Protocol):
    def total(self, rows: int | None) -> None:
        """So many are to be brought or found; None: more than are counted beforehand."""

    def done(self, rows: int) -> None:
        """So many more were."""

    def waiting(self, reason: str) -> None:
        """'' when it goes on."""


def progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[yellow]{task.fields[reason]}"),
        console=console,
    )


class Line:
    """A Display: one line of a terminal."""

    def __init__(self, progress: Progress, dataset: Dataset) -> None:
        self._progress = progress
        self._task = progress.add_task(dataset.name, total=None, reason="")

    def total(self, rows: int | None) -> None:
        self._progress.update(self._task, total=rows)

    def done(self, rows: int) -> None:
        self._progress.advance(self._task, rows)

    def waiting(self, reason: str) -> None:
        self._progress.update(self._task, reason=escape(reason))


def summary(dataset: Dataset, store: str, outcome: Outcome, seconds: float) -> str:
    parts = [
        f"{outcome.written:,} rows replayed in {seconds:.1f} s",
        f"{outcome.found:,} were there",
        f"{outcome.streamed:,} left to stream-to-store",
    ]
    if outcome.dead_lettered:
        parts.append(f"{outcome.dead_lettered:,} dead-lettered: see topic dead-letter")
    return f"{dataset.name} into {store}: {', '.join(parts)}"
