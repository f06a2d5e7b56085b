"""The pages that `logpipe bench figures` writes, and what the command measures."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from services.bench.cases import figures, footprints, generator, sustained
from services.bench.cases.command import command
from services.bench.cases.figures import Figure, Matrix, Table
from services.bench.cases.footprints import Answer, void_differing


@pytest.mark.parametrize(
    ("better", "values", "verdict"),
    [
        ("more", [5.0, 90.0, 95.0], "goal reached"),
        ("more", [60.0], "floor reached"),
        ("more", [99.0, 59.0, 1.0], "below the floor"),
        ("less", [90.0], "below the floor"),
        ("less", [60.0], "goal reached"),
    ],
)
def test_the_median_is_compared_with_floor_and_goal(better: str, values: list[float], verdict: str) -> None:
    floor, goal = (60, 90) if better == "more" else (80, 60)
    assert Figure("f", "%", values, floor, goal, better).verdict == verdict


def test_a_page_and_its_data_hold_every_figure_and_every_cell(tmp_path: Path) -> None:
    matrix = Matrix("read", "ms")
    matrix.cells.update({("count", "a"): [10.0, 20.0, 30.0], ("count", "b"): [5.0]})
    matrix.notes.update({("count", "a"): "3 files", ("count", "b"): "", ("count", "c"): "void: another result"})
    rate = Figure("rate", "rows/s", [1000.0, 3000.0], 2000, 9000, notes=["a note"])
    page = figures.publish(tmp_path / "into", "read", [rate], [matrix])
    text = page.read_text()
    assert "| rate | rows/s | 2,000 | 1,000 … 3,000 | 2 | 2,000 | 9,000 | floor reached |" in text
    assert "- **rate**: a note" in text
    assert "| count | a | 20 | 10 … 30 | 3 | 4 x | 3 files |" in text
    assert "| count | c | - | | | | void: another result |" in text
    data = json.loads(page.with_suffix(".json").read_text())
    assert data["figures"][0]["values"] == [1000.0, 3000.0]
    assert data["matrices"][0]["cells"] == [["count", "a", [10.0, 20.0, 30.0]], ["count", "b", [5.0]]]


def test_a_page_without_figures_has_its_tables(tmp_path: Path) -> None:
    table = Table("Disk", ("rows", "store", "bytes a row"), [(1_000_000, "PostgreSQL", 171.25)], ["without rollups"])
    page = figures.publish(tmp_path, "footprints", [], tables=[table])
    text = page.read_text()
    assert "| figure |" not in text
    assert "## Disk\n\n| rows | store | bytes a row |\n|---|---|---|\n| 1,000,000 | PostgreSQL | 171 |" in text
    assert "- without rollups" in text
    assert json.loads(page.with_suffix(".json").read_text())["tables"][0]["rows"] == [[1_000_000, "PostgreSQL", 171.25]]


def test_a_store_with_another_result_is_void() -> None:
    matrix = Matrix("hot", "ms", {("total", "a"): [1.0, 1.0], ("total", "b"): [2.0, 2.0], ("week", "b"): [3.0]})
    seen = {
        "total": [("a", Answer(1, "scan", 7)), ("b", Answer(2, "scan", 7)), ("b", Answer(2, "scan", 8))],
        "week": [("a", Answer(9, "", None, "too slow")), ("b", Answer(3, "scan", []))],
    }
    void_differing(matrix, seen)
    assert list(matrix.cells) == [("total", "a"), ("week", "b")]
    assert matrix.notes == {("total", "b"): "void: another result", ("week", "a"): "void: too slow"}


def test_only_the_named_cases_are_measured_and_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def by_generator(runs: int) -> list[Figure]:
        measured.append(runs)
        return [Figure("generator", "rows/s", [1.0], 1, 2)]

    def by_stack(folder: Path, writer: str, rates: list[int], seconds: int, say: object) -> list[Figure]:
        assert folder.is_dir()
        measured.append((writer, rates, seconds))
        return [Figure("sustained", "rows/min", [1.0], 1, 2)]

    def by_dashboard(folder: Path, sizes: list[int], runs: int, say: object) -> tuple[list[Matrix], list[Table]]:
        measured.append((sizes, runs))
        return [Matrix("hot", "ms")], [Table("Disk", ("bytes",), [(7,)])]

    monkeypatch.setattr(footprints, "measure", by_dashboard)
    monkeypatch.setattr(generator, "measure", by_generator)
    monkeypatch.setattr(sustained, "measure", by_stack)
    options = "--only generator --only sustained-embedded --only footprints --footprints 3000 --footprints 2000"
    options += " --runs 3 --rate 20 --rate 10 --seconds 10 --into"
    result = CliRunner().invoke(command, [*options.split(), str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert measured == [3, ("embedded", [10, 20], 10), ([2000, 3000], 7)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("footprints.json", "footprints.md"),
        *("generator.json", "generator.md"),
        *("sustained-embedded.json", "sustained-embedded.md"),
    ]
    assert "floor reached" in result.output


def test_the_generator_measures_its_rate_and_its_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generator, "_ROWS", 2000)
    generator._run()
    rate, peak = map(float, capsys.readouterr().out.split())
    assert rate > 0
    assert peak > 0
