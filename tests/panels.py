"""The dashboards' panels, and their queries by the data source that they are for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BOARDS = sorted((Path(__file__).parents[1] / "kubernetes" / "monitoring" / "grafana").glob("*.json"))


def panels(board: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(board.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Panel -> each of its queries to Prometheus, with Grafana's variables as they are after a click on nothing."""
    return {
        f"{board}: {panel['title']} ({target['legendFormat']})": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$store", ".*")
        for board, panel, target in targets("prometheus")
    }


def statements(start: str, end: str, zone: str) -> dict[str, str]:
    """Panel -> its SQL, with Grafana's macro and variable for this period (ISO 8601) and time zone."""
    return {
        f"{board}: {panel['title']}": re.sub(
            r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN '{start}' AND '{end}'", target["rawSql"]
        ).replace("${zone:sqlstring}", f"'{zone}'")
        for board, panel, target in targets("grafana-postgresql-datasource")
    }


def targets(source: str) -> Iterator[tuple[str, Any, Any]]:
    """The dashboard, panel and target of each query for this type of data source."""
    for board in BOARDS:
        for panel in panels(board):
            if panel["datasource"]["type"] == source:
                yield from ((board.stem, panel, target) for target in panel["targets"])
