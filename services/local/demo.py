"""`logpipe demo` shows the whole pipeline in a few minutes.

It starts the stack, sends rows, waits until they are loaded, verifies the stores, runs queries, and prints the results.

It does only what a user can do, too: it calls the generator, the query API and /metrics by HTTP, and runs `verify` as a
command.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import click
import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from services import stores
from services.local import freshness, view
from services.local.freshness import Freshness
from services.local.main import Command
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.local.verification import verify

_REQUEST_ROWS = 1000
_EVENT_SHARE = 0.1
_DRAIN_SECONDS = 120
_PLAIN_WIDTH = 118  # of an output that goes to a file
_QUERIES = {
    "stats": "stats?method=scan",
    "logs by level": "logs/aggregate?group_by=level&method=scan",
    "newest 100 logs": "logs?limit=100&count=none&method=scan",
}
"""The queries scan, so that they show how long each store takes to read the rows, not its rollups or cached results."""


@click.command(cls=Command)
@click.argument("what", type=click.Choice(["pipeline", "footprints"]), default="pipeline")
@click.option(
    "--rate", default=30_000, show_default=True, help="Of the pipeline: rows a second, logs and events together."
)
@click.option("--seconds", default=60, show_default=True, help="How long to send rows, or requests.")
def demo(what: str, rate: int, seconds: int) -> None:
    """Start the stack, send rows for a minute, verify and compare the stores.

    `logpipe demo footprints` serves an app whose requests are recorded, and shows who called what.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    settings = LocalSettings()
    if what == "footprints":
        from services.local import footprint_demo  # needs the distribution request-footprints

        footprint_demo.show(console, settings, seconds)
        return
    view.bring_up(console, Stack(settings))
    with httpx.Client(timeout=60, trust_env=False) as client:
        before = freshness.read(client, settings)
        sent = _drive(console, client, settings, rate, seconds)
        with console.status("draining and verifying: every row of every store is read back and compared"):
            started = time.monotonic()
            report = verify(settings, _DRAIN_SECONDS, "--all")
            took = time.monotonic() - started
        after = freshness.read(client, settings)
        fresh = {store: after[store].since(before[store]) for store in after}
        console.print(_stores_table(report, fresh, sent / seconds * 60))
        console.print(_results_table(client, settings))
    console.print(
        f"{sent / seconds * 60:,.0f} rows/min for {seconds} s, acknowledged; drained and verified in {took:.0f} s."
        f" {'[green]Nothing lost, nothing doubled.[/]' if report['ok'] else '[bold red]The stores differ.[/]'}\n"
        "The stack is still up: [bold]logpipe status[/] shows it, [bold]logpipe down[/] stops it."
    )
    if not report["ok"]:
        raise SystemExit(1)


def _drive(console: Console, client: httpx.Client, settings: LocalSettings, rate: int, seconds: int) -> int:
    """Let the generator send for `seconds`. Return how many rows were acknowledged."""
    control = f"http://127.0.0.1:{settings.generator_port}/control"
    parameters = {
        "batch_size": _REQUEST_ROWS,
        "log_interval": _REQUEST_ROWS / (rate * (1 - _EVENT_SHARE)),
        "event_interval": _REQUEST_ROWS / (rate * _EVENT_SHARE),
    }
    columns = (TextColumn("load"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    already = _acked(client, control)
    client.post(f"{control}/start", params=parameters).raise_for_status()
    started = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=seconds)
        while (elapsed := time.monotonic() - started) < seconds:
            stats = client.get(f"{control}/status").json()["stats"]
            acked = stats["logs_sent"] + stats["events_sent"] - already
            line = f"{acked:>10,} rows acknowledged, {acked / elapsed:>6,.0f}/s, {stats['behind_ms']:,.0f} ms behind"
            progress.update(task, completed=elapsed, description=line)
            time.sleep(min(0.5, seconds - elapsed))
        client.post(f"{control}/stop").raise_for_status()
    return _acked(client, control) - already


def _acked(client: httpx.Client, control: str) -> int:
    stats = client.get(f"{control}/status").json()["stats"]
    return int(stats["logs_sent"] + stats["events_sent"])


def _seconds(freshness: Freshness) -> str:
    return " / ".join("-" if (q := freshness.quantile(share)) is None else f"{q:.1f}" for share in (0.5, 0.99)) + " s"


def _stores_table(report: Mapping[str, Any], fresh: Mapping[str, Freshness], rows_per_minute: float) -> Table:
    table = Table(title="Every store against the ledger", title_justify="left")
    table.add_column("store", no_wrap=True)
    for heading in ("accepted", "found", "lost", "doubled", "extra", "dead", "checksums"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("fresh p50 / p99", justify="right", no_wrap=True)
    table.add_column("rows/min", justify="right")
    for store in stores.readable():
        if store.name in report["unchecked"]:
            table.add_row(store.label, f"[red]not checked: {report['unchecked'][store.name]}[/]")
            continue
        sums = Counter[str]()
        for result in report["results"]:
            if result["store"] == store.name:
                sums.update({name: count for name, count in result.items() if type(count) is int})
        table.add_row(
            store.label,
            f"{sums['expected']:,}",
            f"{sums['found']:,}",
            *(_fault(sums[name]) for name in ("missing", "duplicated", "extra", "dead_lettered")),
            f"{sums['compared'] - sums['differing']:,}/{sums['compared']:,}",
            _seconds(fresh[store.name]) if store.name in fresh else "at once",
            f"{rows_per_minute:,.0f}",
        )
    return table


def _fault(rows: int) -> str:
    return f"[red]{rows:,}[/]" if rows else "0"


def _results_table(client: httpx.Client, settings: LocalSettings) -> Table:
    table = Table(title="The same query to every store", title_justify="left")
    table.add_column("query")
    routes = [store.route for store in stores.readable()]
    for store in stores.readable():
        table.add_column(store.label, justify="right")
    table.add_column("results")
    for query, path in _QUERIES.items():
        cells, results = [], []
        for route in routes:
            reply = client.get(f"http://127.0.0.1:{settings.query_port}/api/query/{route}/{path}")
            if reply.status_code != 200:
                cells.append(f"[red]{reply.json()['detail']}[/]")
                continue
            body = reply.json()
            cells.append(f"{body['query_time_ms']:,.1f} ms")
            results.append(body.get("data") or {key: body[key] for key in ("logs_count", "events_count")})
        agree = len(results) == len(routes) and all(result == results[0] for result in results)
        table.add_row(query, *cells, f"{_summary(results[0])}" if agree else "[bold red]differ[/]")
    return table


def _summary(result: Any) -> str:
    """Return the text of a result that is the same in all stores."""
    match result:
        case {"logs_count": logs, "events_count": events}:
            return f"equal: {logs:,} logs, {events:,} events"
        case [{"key": _, "count": _}, *_]:
            return "equal: " + ", ".join(f"{row['key']} {row['count']:,}" for row in result)
        case _:
            return f"equal: {len(result)} rows"
