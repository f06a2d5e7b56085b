"""How the local stack looks on a terminal."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.local.program import Program
from services.local.stack import Stack, Watcher
from services.local.supervision import State


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    state: State
    address: str
    memory: int
    missing: str | None


def rows(stack: Stack) -> list[Row]:
    """Return a row for each program that the supervisor knows. Only running programs are asked if they are ready."""
    states = stack.states()
    if not states:
        return []
    with ThreadPoolExecutor(len(states)) as pool:
        return list(pool.map(lambda item: _row(stack.program(item[0]), item[1]), states.items()))


def _row(program: Program, state: State) -> Row:
    missing = program.ready() if state.pid else None if state.name == "STOPPED" else state.description
    return Row(program.name, state, program.address, _memory(state.pid), missing)


def _memory(pid: int) -> int:
    """Return the memory of a process and its children, with the memory that they share counted once."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        shared = 0
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                info = each.memory_info()
                total += info.rss - getattr(info, "shared", 0)
                shared = max(shared, getattr(info, "shared", 0))
        total += shared
    return total


def table(stack: Stack, of: list[Row] | None = None) -> Table:
    shown = Table(title=f"local stack in {stack.folder}")
    for column, justify in (("process", "left"), ("state", "left"), ("pid", "right"), ("address", "left")):
        shown.add_column(column, justify=justify, no_wrap=column != "address", overflow="fold")  # type: ignore[arg-type]
    shown.add_column("memory", justify="right", no_wrap=True)
    shown.add_column("ready")
    total = 0
    for row in rows(stack) if of is None else of:
        total += row.memory
        ready = "[green]yes" if row.missing is None else f"[red]no[/]: {row.missing}"
        if row.state.name == "STOPPED":
            ready = "stopped"
        shown.add_row(row.name, row.state.name, str(row.state.pid or ""), row.address, f"{row.memory >> 20} MB", ready)
    shown.add_section()
    shown.add_row("all", "", "", "", f"{total >> 20} MB", "")
    return shown


def bring_up(console: Console, stack: Stack) -> None:
    with progress(console, stack.steps) as watcher:
        stack.up(watcher)
    console.print(table(stack))


@contextmanager
def progress(console: Console, names: tuple[str, ...]) -> Iterator[Watcher]:
    """Show a line for each name; yields the watcher that updates the lines."""
    shown = Progress(
        SpinnerColumn(finished_text="•"), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
    )
    with shown:
        tasks = {name: shown.add_task(f"{name}: waiting", total=1, start=False) for name in names}

        def watcher(name: str, event: str) -> None:
            task = tasks[name]
            shown.start_task(task)
            shown.update(task, description=f"{name}: {event}", completed=int(event in ("ready", "stopped")))

        yield watcher
