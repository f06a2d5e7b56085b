"""The benchmark of a year of history, with a history of three days."""

from pathlib import Path

import pytest

from services.bench import growth


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_planted_history_is_verified_and_every_figure_is_measured(stack_folder: Path) -> None:
    stack_folder.mkdir()
    figures = growth.measure(stack_folder, batches=2000, days=3, log_files=100, runs=1, say=print)
    names = [figure.name for figure in figures]
    assert len(names) == len(set(names)) == 11
    assert all(figure.values[0] > 0 for figure in figures)
