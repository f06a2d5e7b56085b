"""Measures a scenario of k6 at one arrival rate. k6 is a program of its own, which may be absent."""

import json
import os
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.bench.evidence.records import Pace, Tables, Trial, made
from services.bench.plan.cells import LoadCell
from services.bench.plan.contenders import contenders
from services.bench.probes.tables import append, empty, microseconds
from services.bench.target.urls import Target
from services.core.errors import NeedsOperator

_SCENARIOS = Path(__file__).parents[3] / "k6" / "scenarios"
_PROFILE = "load"  # for its number of virtual users: rate and duration are those of the cell
_THRESHOLDS_FAILED = 99  # k6's exit status; the report judges


def problem() -> str | None:
    """Return None, or why k6 cannot run, and what to do."""
    if shutil.which("k6") is None:
        return "k6 is not on the PATH: https://grafana.com/docs/k6/latest/set-up/install-k6 says how to install it"
    if not _SCENARIOS.is_dir():
        return "the scenarios of k6 are not installed: run from the source, which has the folder k6"
    return None


def measure(
    target: Target, dataset: str, cell: LoadCell, repeat: int, number: int, seconds: float
) -> tuple[Trial, Tables]:
    """Raises NeedsOperator if k6 fails."""
    started = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="logpipe-k6-") as name:
        points, summary = Path(name) / "points.json", Path(name) / "summary.json"
        variables = {
            "STORE": contenders()[cell.store].route,
            "DATASET": dataset,
            "PROFILE": _PROFILE,
            "BASE_URL": target.query_url,
            "INGEST_URL": target.ingest_url,
            "RATE": f"{cell.rate:g}",
            "SECONDS": f"{seconds:g}",
            "SUMMARY": str(summary),
            **({"TOKEN": target.token} if target.token else {}),
        }
        script = _SCENARIOS / f"{cell.scenario}.js"
        done = subprocess.run(
            ["k6", "run", "--quiet", "--no-usage-report", "--include-system-env-vars", f"--out=json={points}", script],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, _THRESHOLDS_FAILED) or not summary.exists():
            raise NeedsOperator(f"k6 run {script.name} failed: {(done.stderr or done.stdout)[-500:].strip()}")
        tables = _tables(points)
        dropped = _count(json.loads(summary.read_text()), "dropped_iterations")
    sent = len(tables["reads"]["due"])
    return made(number, cell, repeat, started, seconds, Pace(sent + dropped, sent, dropped, 0.0)), tables


def _tables(points: Path) -> Tables:
    """Return a sample for each reply. k6 starts an iteration at its intended time, or drops it."""
    found = []
    with points.open() as lines:
        for line in lines:
            point = json.loads(line)
            if point["metric"] == "answered" and point["type"] == "Point":
                data = point["data"]
                ended = datetime.fromisoformat(data["time"][:26].rstrip("Z") + "+00:00").timestamp()
                found.append((ended - data["value"] / 1e3, data["value"] / 1e3, data["tags"]))
    found.sort(key=lambda sample: sample[0])
    reads, files = empty("due", "response", "store", "method", "digest", "problem"), empty("files", "files_total")
    for due, response, tags in found:
        told = "" if tags["code"] == "200" else f"status {tags['code']}"
        times = (microseconds(due - found[0][0]), microseconds(response), 0)
        append(reads, *times, tags["by"], "", told)
        append(files, 0, 0)
    return {"reads": reads, "files": files}


def _count(summary: dict[str, Any], metric: str) -> int:
    return int(summary["metrics"].get(metric, {}).get("values", {}).get("count", 0))
