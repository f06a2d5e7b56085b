"""`logpipe demo`: the whole pipeline in two minutes: start, load, drain, verify, ask, and a table of what was found.

It does what a user could do with curl: the generator, the query API and /metrics are asked by HTTP, `verify` is run as
a command.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import click
import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.core import metric_names
from services.local.settings import LocalSettings
from services.local.stack import Stack

_REQUEST_ROWS = 1000
_EVENT_SHARE = 0.1
_DRAIN_SECONDS = 120
_STORES = {"postgres": "PostgreSQL", "clickhouse": "ClickHouse", "lake": "lake (HDFS)"}
_ROUTES = {"postgres": "postgres", "clickhouse": "clickhouse", "lake": "hdfs"}
_QUESTIONS = {
    "stats": "stats",
    "aggregate by level": "logs/aggregate?group_by=level",
    "newest 100": "logs?limit=100&count=none",
}


@dataclass(frozen=True, slots=True)
class Load:
    """What the generator did."""

    sent: int
    refused: int
    indeterminate: int
    errors: int
    behind_ms: float
    seconds: float


@click.command()
@click.option("--rate", default=30_000, show_default=True, help="Rows a second, logs and events together.")
@click.option("--seconds", default=60, show_default=True, help="How long to drive load.")
def demo(rate: int, seconds: int) -> None:
    """Start everything, drive load for a minute, drain, verify, compare the stores."""
    console = Console()
    settings = LocalSettings()
    Stack(settings).up(console)
    with httpx.Client(timeout=60) as client:
        load = _drive(console, client, settings, rate, seconds)
        drained = _verify(console)
        _report(console, client, settings, load, drained)
    console.print("\nThe stack is still up: [bold]logpipe status[/] shows it, [bold]logpipe down[/] stops it.")
    if not drained["clean"]:
        raise SystemExit(1)
