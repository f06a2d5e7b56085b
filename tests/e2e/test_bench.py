"""The benchmarks on real components, with few rows and a few seconds: each measures all of its figures."""

import json
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from services import stores
from services.bench.cases import footprint_inserts, footprints, growth, ingest, sustained
from services.bench.main import main
from services.core.queries import Panel

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


def test_ingest_is_compared_with_copy(stack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "_ROWS", 20_000)
    stack_folder.mkdir()
    [figure] = ingest.measure(stack_folder, 2, print)
    assert len(figure.values) == 2
    assert all(value > 0 for value in figure.values)


def test_a_rate_that_is_held_is_reported(stack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sustained, "_SETTLE", 2.0)
    monkeypatch.setattr(sustained, "_LATENCY_RATE", 1000)
    # A slow machine may fail to hold even this rate, but that is no error of the benchmark.
    monkeypatch.setattr(sustained, "_BEHIND_MS", 60_000.0)
    monkeypatch.setattr(sustained, "_DRAIN_SECONDS", 120.0)
    rate, latency, *fresh = sustained.measure(stack_folder, "embedded", [1000], 4, print)
    assert rate.values == [60_000]
    assert rate.notes[-1].endswith("in every store afterwards: equal")
    assert [len(figure.values) for figure in (latency, *fresh)] == [3, 3, 3]
    assert all(value > 0 for value in latency.values)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_dashboard_is_measured_by_every_store(stack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprints, "_COLD_RUNS", 1)
    monkeypatch.setattr(footprint_inserts, "_SINGLE_ROWS", 50)
    monkeypatch.setattr(footprint_inserts, "_BLOCK_ROWS", 500)
    monkeypatch.setattr(footprint_inserts, "_SECONDS", 2.0)
    matrices, tables = footprints.measure(stack_folder, [1000], 2, print)
    assert len(matrices) == 4
    labels = {store.label for store in stores.readable()}
    for matrix in matrices:
        assert set(matrix.notes) == {(panel, label) for panel in get_args(Panel) for label in labels}
        # A slow machine may give no result in time, but that is no error of the benchmark.
        missing = {cell: note for cell, note in matrix.notes.items() if cell not in matrix.cells}
        assert [note for note in missing.values() if "another result" in note] == [], missing
        assert matrix.cells, missing
    loads, disk, usage, inserts = tables
    assert {row[1] for row in loads.rows} == {row[1] for row in disk.rows} == labels
    assert all(isinstance(row[2], float | int) and row[2] > 0 for row in (*loads.rows, *disk.rows))
    assert {"postgres", "clickhouse", "query-api", "stream-to-lake"} <= {row[1] for row in usage.rows}
    assert all(row[-1] for row in usage.rows)  # the peak of the memory
    assert [row[:2] for row in inserts.rows] == [
        (label, way) for label in ("PostgreSQL", "ClickHouse") for way in ("one row", "up to 500 rows")
    ]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_planted_history_is_verified_and_every_figure_is_measured(stack_folder: Path) -> None:
    stack_folder.mkdir()
    figures = growth.measure(stack_folder, batches=2000, days=3, log_files=100, runs=1, say=print)
    names = [figure.name for figure in figures]
    assert len(names) == len(set(names)) == 11
    assert all(figure.values[0] > 0 for figure in figures)


def test_the_smoke_plan_finds_no_row_and_no_result_that_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "smoke"
    ended = CliRunner().invoke(main, ["run", "smoke", "--fresh-stack", "--into", str(folder)])
    assert ended.exit_code == 0, ended.output
    report = json.loads((folder / "report.json").read_text())
    # A slow machine may fall behind the schedule or use up the budget, but that is no error of the benchmark.
    reasons = [reason for void in report["voids"] for reason in void["reasons"] if "the driver" not in reason]
    assert reasons == []
    assert "differences" not in report["status"]
    assert CliRunner().invoke(main, ["recheck", str(folder)]).exit_code == 0
