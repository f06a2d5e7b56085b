"""`logpipe bench`: the commands that run plans, and check and compare what they measured."""

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services import datasets
from services.bench.cases.command import command as figures
from services.bench.evidence import surroundings
from services.bench.evidence.folder import Evidence
from services.bench.evidence.records import About
from services.bench.plan.loading import parsed, shipped, text_of
from services.bench.plan.schema import Plan
from services.bench.probes.write import bases
from services.bench.report.diff import diff
from services.bench.report.publishing import publish, recheck
from services.bench.run import Run
from services.bench.target import local
from services.bench.target.settings import BenchSettings
from services.bench.target.urls import Target
from services.core.errors import Invalid, LogpipeError, NeedsOperator

_console = Console(highlight=False, soft_wrap=True)


class _Command(click.Command):
    """Shows our own errors as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LogpipeError as error:
            raise click.ClickException(str(error)) from error


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group)
def main() -> None:
    """Measure the pipeline, and show what a sceptic can check."""


main.add_command(figures)


@main.command()
@click.argument("plan")
@click.option("--into", type=click.Path(path_type=Path), help="Folder of the evidence; one with a cut-off run goes on.")
@click.option("--fresh-stack", is_flag=True, help="Measure a local stack of its own, which is deleted afterwards.")
@click.option("--beside-rows", is_flag=True, help="Write into the dataset although it holds rows of another program.")
def run(plan: str, into: Path | None, fresh_stack: bool, beside_rows: bool) -> None:
    """Run PLAN, a shipped plan or a YAML file, and write a report.

    Without --fresh-stack, the stack is the one at LOGPIPE_QUERY_URL and LOGPIPE_INGEST_URL, or else the local stack.
    The rows of a finished run are dropped again, if the plan's dataset is one on request, such as bench_logs.
    """
    text = text_of(plan)
    checked = parsed(text, f"{plan}.yaml" if plan in shipped() else plan)
    folder = into or Path("bench-results") / f"{checked.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with _target(checked, fresh_stack) as target:
        if problem := target.problem():
            raise NeedsOperator(problem)
        _check_disk(checked, target)
        _check_faults(checked, target)
        _check_dataset(checked, target, may_hold_rows=beside_rows or (folder / "journal.ndjson").exists())
        evidence = _evidence(folder, checked, text, target)
        _console.print(f"rows of this run have a host that begins with {evidence.about.run}; evidence in {folder}")
        try:
            finished = Run(checked, target, evidence, lambda event: _console.print(escape(event))).execute()
            if finished and datasets.find(checked.dataset).on_request:
                _console.print(f"dropping the rows of {checked.dataset}")
                target.empty(checked.dataset)
        except KeyboardInterrupt:
            _console.print(
                "interrupted: the report has what was measured until now; the same command with --into goes on"
            )
        finally:
            _console.print(f"report: {publish(evidence)}")
    _console.print((folder / "report.md").read_text(), markup=False)


@main.command("recheck")
@click.argument("folder", type=click.Path(path_type=Path))
def recheck_command(folder: Path) -> None:
    """Compute every number of a report again from its evidence. Exits with 1 if one differs."""
    if problems := recheck(Evidence.open(folder)):
        raise click.ClickException("\n".join(problems))
    _console.print(f"{folder}: every number of the report follows from its samples")


@main.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def diff_command(first: Path, second: Path) -> None:
    """Say what changed from one run to another."""
    found = diff(Evidence.open(first), Evidence.open(second))
    table = Table("cell", "response time", "interval", "verdict")
    for change in found.changes:
        ratio = change.ratio
        table.add_row(
            escape(change.key), f"{ratio.value:.3g}x", f"{ratio.low:.3g}x to {ratio.high:.3g}x", change.verdict
        )
    _console.print(table)
    for title, lines in (
        ("only in the first", found.only_first),
        ("only in the second", found.only_second),
        ("void in one of them, not compared", found.void),
        ("what else differs", found.surroundings),
    ):
        for line in lines:
            _console.print(f"{title}: {escape(line)}")


@contextmanager
def _target(plan: Plan, fresh_stack: bool) -> Iterator[Target]:
    settings = BenchSettings()
    if fresh_stack:
        if datasets.find(plan.dataset).on_request:
            os.environ[datasets.EXTRA] = plan.dataset  # which the programs of the stack inherit
        _console.print("starting a stack")
        with local.fresh(settings, spark="lake:spark" in plan.stores) as made:
            yield made
    else:
        with closing(local.running(settings) or Target(settings, local.producer_perf)) as found:
            yield found


def _evidence(folder: Path, plan: Plan, text: str, target: Target) -> Evidence:
    """Open the evidence of a run that was cut off, or begin a new one. Raises Invalid."""
    all_settings = {**os.environ, **target.environment()}
    settings = {name: value for name, value in all_settings.items() if name.startswith("LOGPIPE_")}
    started = datetime.now(UTC)
    about = About(
        f"bench-{started:%Y%m%d%H%M%S}-{secrets.token_hex(2)}",
        plan.name,
        started.isoformat(timespec="seconds"),
        surroundings.versions(),
        surroundings.machine(),
        target.describe(),
        surroundings.masked(settings),
    )
    if not (folder / "journal.ndjson").exists():
        return Evidence.create(folder, about, text)
    evidence = Evidence.open(folder)
    if evidence.plan != text:
        raise Invalid(f"{folder} has the evidence of another plan: name another folder by --into")
    for name, ours in (("machine", about.machine), ("versions", about.versions)):
        if (theirs := getattr(evidence.about, name)) != ours:
            raise Invalid(f"the {name} have changed since {folder} was begun, from {theirs} to {ours}: begin a new run")
    evidence.note("resumed")
    return evidence


def _check_disk(plan: Plan, target: Target) -> None:
    rows = max([*(plan.read.rows if plan.read else []), *([plan.load.rows] if plan.load else []), 0])
    for rate, seconds in _loads(plan):
        rows += round(rate * seconds / 60)
    needed, free = rows * plan.limits.disk_bytes_a_row, target.free_bytes()
    if free is not None and free < needed:
        raise NeedsOperator(
            f"{plan.name} writes about {rows:,} rows, which may take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are"
            " free: make room, or lower the rows and rates of the plan"
        )


def _loads(plan: Plan) -> Iterator[tuple[float, float]]:
    """Yield the rows a minute and the seconds of each offer that is known before the run."""
    if plan.write:
        seconds = plan.write.seconds + plan.write.warm_up_seconds
        yield from ((rate, seconds) for rate in plan.write.rates for _ in range(plan.repeats))
    if plan.knee:
        yield plan.knee.start, plan.knee.seconds + plan.repeats * plan.knee.hold_seconds


def _check_faults(plan: Plan, target: Target) -> None:
    """Raises Invalid if a component of the plan does not run where the run can kill it."""
    able = target.components()
    if missing := [name for name in plan.faults.components if name not in able] if plan.faults else []:
        there = ", ".join(sorted(able)) or "none, because the stack is not one of this machine"
        raise Invalid(f"{plan.name} kills {', '.join(missing)}; what runs and can be killed: {there}")


def _check_dataset(plan: Plan, target: Target, *, may_hold_rows: bool) -> None:
    """Raises NeedsOperator if the dataset is missing, or holds rows: those of the run would stand among them."""
    on_request = datasets.find(plan.dataset).on_request
    for name, store in bases(plan).items():
        rows = target.get(f"{store.route}/stats", {"cache": "off"}).get(f"{plan.dataset}_count")
        if rows is None:
            raise NeedsOperator(
                f"the stack has no dataset {plan.dataset}: start its processes with {datasets.EXTRA}={plan.dataset},"
                f" as by `{datasets.EXTRA}={plan.dataset} logpipe up`, or take --fresh-stack"
            )
        if rows and not may_hold_rows:
            drop = f"drop them by `logpipe maintain --once --empty --dataset {plan.dataset}`, " if on_request else ""
            raise NeedsOperator(
                f"{name} holds {rows:,} rows of {plan.dataset}: {drop}take --fresh-stack, or --beside-rows if the rows"
                " of the run may stand among them"
            )
