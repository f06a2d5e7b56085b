"""`logpipe demo footprints` shows how the requests to an app become rows in every store.

It starts the stack with `kafka-source`, sends two weeks of invented traffic, serves an app with the middleware, visits
the app, and verifies that every request is in every store.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

import click
import httpx
from request_footprints import counts
from rich.console import Console
from rich.table import Table

from services import stores
from services.core.errors import NeedsOperator
from services.local import sample_shop, view
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.local.verification import verify

TOPIC = "web-logs-topic"
HISTORY_ROWS = 200_000
_HISTORY_DAYS = 14
_DRAIN_SECONDS = 120
_TAKE_SECONDS = 60  # for kafka-source


def show(console: Console, settings: LocalSettings, seconds: int) -> None:
    """Raises NeedsOperator if requests and footprints do not agree."""
    if not settings.kafka_source_topic:
        settings = settings.model_copy(update={"kafka_source_topic": TOPIC})
    view.bring_up(console, Stack(settings, (*Stack(settings).names, "kafka-source")))
    service = f"sample-shop-{uuid4().hex[:8]}"
    began = datetime.now(UTC)
    with httpx.Client(timeout=300, trust_env=False) as client:
        with console.status(f"sending {HISTORY_ROWS:,} invented footprints of the last {_HISTORY_DAYS} days"):
            burst = f"http://127.0.0.1:{settings.generator_port}/burst/footprints"
            parameters = {"count": HISTORY_ROWS, "days": _HISTORY_DAYS}
            sent = client.post(burst, params=parameters).raise_for_status().json()["sent"]
        with console.status(f"visiting a shop whose requests are recorded, for {seconds} s"):
            kafka = settings.urls()["LOGPIPE_KAFKA_URL"]
            replies = asyncio.run(sample_shop.run(service, kafka, settings.kafka_source_topic, seconds))
        dropped = counts(service).dropped
        kept = replies - dropped
        with console.status("draining and verifying: every row of every store is read back and compared"):
            _await(partial(_stored, client, settings, stores.readable()[0].route, service, began), kept)
            report = verify(settings, _DRAIN_SECONDS, "--all")
        found = {store.label: _stored(client, settings, store.route, service, began) for store in stores.readable()}
    console.print(_table(kept, found))
    page = f"http://127.0.0.1:{settings.query_port}/footprints"
    agree = report["ok"] and not dropped and all(rows == kept for rows in found.values())
    console.print(
        f"{sent:,} invented footprints and {replies:,} requests to the shop, {dropped:,} of them dropped."
        f" {'[green]Every one is in every store.[/]' if agree else '[bold red]Not every one is in every store.[/]'}\n"
        f"Who called what, and which store says so fastest: [bold]{page}[/]\n"
        "The stack is still up: [bold]logpipe down[/] stops it."
    )
    if not agree:
        raise NeedsOperator("requests and footprints differ: see `logpipe verify`")
    if console.is_terminal:
        click.launch(page)


def _stored(client: httpx.Client, settings: LocalSettings, route: str, service: str, began: datetime) -> int:
    """Return how many requests to the shop a store has."""
    url = f"http://127.0.0.1:{settings.query_port}/api/query/{route}/footprints/aggregate"
    parameters = {
        "group_by": "service",
        "service": service,
        "start_time": began.isoformat(),
        "method": "scan",
    }
    return sum(group["count"] for group in client.get(url, params=parameters).raise_for_status().json()["data"])


def _await(count: Callable[[], int], wanted: int) -> None:
    """Wait until as many requests are rows. If they do not become so, what follows finds the difference."""
    deadline = time.monotonic() + _TAKE_SECONDS
    while count() < wanted and time.monotonic() < deadline:
        time.sleep(0.5)


def _table(kept: int, found: Mapping[str, int]) -> Table:
    table = Table(title="Requests in every store", title_justify="left")
    table.add_column("store")
    table.add_column("rows", justify="right")
    table.add_column("requests", justify="right")
    for label, rows in found.items():
        table.add_row(label, f"{rows:,}" if rows == kept else f"[bold red]{rows:,}[/]", f"{kept:,}")
    return table
