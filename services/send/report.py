"""The output of `logpipe send`: the progress bar, the rejects file, and the table at the end."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.core.errors import LogpipeError
from services.send.chunks import Reject
from services.send.transfer import Totals

_REFRESH_SECONDS = 0.2


def printable(text: str) -> str:
    """Return the text with its control characters escaped, and all others that end a line or are not shown."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class RejectsFile:
    """Line number, reason and the unchanged line, separated by tabs. The file is made for the first rejected line.

    The control characters of a reason are escaped: a reason may quote a part of its line. Only the user may read a file
    that is made here, because the log that its lines come from may be closed to others.
    """

    def __init__(self, path: str, *, append: bool) -> None:
        self.path = Path(path)
        self._append = append
        self._file: BinaryIO | None = None

    def write(self, rejects: list[Reject]) -> None:
        if not rejects:
            return
        if self._file is None:
            self._file = open(self.path, "ab" if self._append else "wb", opener=_open_private)  # noqa: SIM115 - closed by `close`
        for reject in rejects:
            reason = printable(reject.reason).encode(errors="backslashreplace")
            self._file.write(b"%d\t%s\t%s\n" % (reject.line, reason, reject.raw.rstrip(b"\r\n")))
        self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


class View:
    """A progress bar on a terminal; no bar elsewhere. `size`: bytes of the file, None when unknown."""

    def __init__(self, console: Console, totals: Totals, size: int | None) -> None:
        self._totals = totals
        self._start = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %" if size else ""),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=size)
        self._trouble, self._acked = "", 0

    def retrying(self, error: LogpipeError) -> None:
        """Called by the client before it repeats a request; the reason is shown until rows are acked again."""
        reason = printable(str(error))
        if not self._trouble and not self._progress.console.is_terminal:
            self._progress.console.print(f"retrying: {reason}")
        self._trouble = f" · retrying: {reason[:120]}"

    @contextmanager
    def shown(self) -> Iterator[None]:
        with self._progress:
            yield
            self._update()

    async def keep_up(self) -> None:
        """Redraw the bar until this task is cancelled."""
        while True:
            self._update()
            await asyncio.sleep(_REFRESH_SECONDS)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def _update(self) -> None:
        rows = self._totals.acked
        if rows != self._acked:
            self._trouble, self._acked = "", rows
        description = f"{rows:,} rows acked, {rows / max(self.seconds, 0.001):,.0f} rows/s{self._trouble}"
        self._progress.update(self._task, completed=self._totals.offset, description=description)


def summary(totals: Totals, seconds: float, rejects: Path) -> Table:
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("lines read", f"{totals.lines:,}")
    table.add_row("rows acked", f"{totals.acked:,}")
    table.add_row("  of them duplicates", f"{totals.duplicates:,}")
    if totals.joined:
        table.add_row("joined to the line before", f"{totals.joined:,}")
    table.add_row("rejected", f"{totals.rejected:,}" + (f" (in {rejects})" if totals.rejected else ""))
    table.add_row("blank", f"{totals.blank:,}")
    if totals.not_utf8:
        table.add_row("not UTF-8 (read as Latin-1)", f"{totals.not_utf8:,}")
    table.add_row("seconds", f"{seconds:.2f}")
    table.add_row("rows/s", f"{totals.acked / max(seconds, 0.001):,.0f}")
    return table
