"""The commands `logpipe up`, `down`, `env`, `status` and `logs`."""

import os
import shlex

import click
from rich.console import Console

from services.core.errors import LogpipeError
from services.local import monitoring, view
from services.local.settings import LocalSettings
from services.local.stack import NAMES, Stack

_console = Console()


class Command(click.Command):
    """Shows our own errors as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LogpipeError as error:
            raise click.ClickException(str(error)) from error


def _names(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if unknown := set(names) - set(NAMES):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    return names


@click.command(cls=Command)
@click.option("--only", default="", metavar="NAME,...", callback=_names, help=f"Of {', '.join(NAMES)}.")
@click.option("--with", "extra", type=click.Choice(["monitoring"]), help="Also Prometheus and its exporters.")
def up(only: tuple[str, ...], extra: str | None) -> None:
    """Start the local stack and wait until it is ready.

    A stack that has monitoring keeps it at each further `up`, until it is down.
    """
    settings = LocalSettings()
    if extra or "prometheus" in Stack(settings).states():
        settings = settings.model_copy(update={"monitoring": True})
    view.bring_up(_console, Stack(settings, only))
    if settings.monitoring:
        for name, problem in monitoring.absent().items():
            _console.print(f"{name} is absent: {problem}", soft_wrap=True, highlight=False)


@click.command(cls=Command)
@click.option("--only", default="", metavar="NAME,...", callback=_names, help="Leave the others running.")
@click.option("--wipe", is_flag=True, help="Delete all its data, too.")
def down(only: tuple[str, ...], wipe: bool) -> None:
    """Stop the local stack cleanly; its data is kept."""
    if only and wipe:
        raise click.UsageError("--wipe deletes the data of all programs: leave --only out")
    stack = Stack(LocalSettings())
    with view.progress(
        _console, tuple(name for name in reversed(stack.states()) if name in (only or NAMES))
    ) as watcher:
        stack.down(only, wipe=wipe, watcher=watcher)
    _console.print(f"down: {', '.join(only)}" if only else "down" + (f", and {stack.folder} deleted" if wipe else ""))


@click.command(cls=Command)
def env() -> None:
    """Print the settings by which other commands find this stack: eval "$(logpipe env)"."""
    for name, value in LocalSettings().environment().items():
        click.echo(f"export {name}={shlex.quote(value)}")


@click.command(cls=Command)
def status() -> None:
    """Show what runs, where, and whether it is ready. Exit code 1 when anything started is not."""
    stack = Stack(LocalSettings())
    if not stack.states():
        raise click.ClickException("the local stack is down; `logpipe up` starts it")
    rows = view.rows(stack)
    _console.print(view.table(stack, rows))
    if any(row.missing for row in rows):
        raise SystemExit(1)


@click.command(cls=Command)
@click.argument("name", type=click.Choice(NAMES), required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on as more is written.")
@click.option("--lines", "-n", default=50, show_default=True, help="How many lines of each.")
def logs(name: str | None, follow: bool, lines: int) -> None:
    """Show the log of one process, or of all."""
    supervisor = Stack(LocalSettings()).supervisor
    files = [str(log) for each in NAMES if name in (None, each) and (log := supervisor.log_of(each)).exists()]
    if not files:
        raise click.ClickException("no log yet; `logpipe up` starts the stack")
    os.execvp("tail", ["tail", f"--lines={lines}", *(["-F"] if follow else []), *files])  # noqa: S606
