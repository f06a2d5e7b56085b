"""The queries of the dashboards' panels."""

import json
from pathlib import Path

BOARDS = sorted((Path(__file__).parents[1] / "kubernetes" / "monitoring" / "grafana").glob("*.json"))


def queries() -> dict[str, str]:
    """Panel -> each of its queries, with Grafana's variables as they are after a click on nothing."""
    found: dict[str, str] = {}
    for board in BOARDS:
        for panel in json.loads(board.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"].replace("$__rate_interval", "1m").replace("$store", ".*")
                found[f"{board.stem}: {panel['title']} ({target['legendFormat']})"] = expression
    return found
