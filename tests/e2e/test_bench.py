"""The benchmarks on real components, with few rows and a few seconds: each measures all of its figures."""

from pathlib import Path

import pytest

from services.bench.cases import growth, ingest, sustained

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
@pytest.mark.timeout(900)
def test_a_planted_history_is_verified_and_every_figure_is_measured(stack_folder: Path) -> None:
    stack_folder.mkdir()
    figures = growth.measure(stack_folder, batches=2000, days=3, log_files=100, runs=1, say=print)
    names = [figure.name for figure in figures]
    assert len(names) == len(set(names)) == 11
    assert all(figure.values[0] > 0 for figure in figures)
