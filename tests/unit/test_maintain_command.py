"""The command `logpipe maintain --once`."""

from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.maintenance import main


def test_a_dataset_that_fails_does_not_keep_the_others_from_being_maintained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tasks:
        def __init__(self, settings: object, dataset: Dataset) -> None:
            self._dataset = dataset

        def run(self) -> Iterator[str]:
            if self._dataset.name == "events":
                raise StoreDown("lake", "unreachable")
            yield f"{self._dataset.name}: files merged"

    monkeypatch.setattr(main, "MaintenanceTasks", Tasks)
    ran = CliRunner().invoke(main.main, ["--once"])
    assert ran.exit_code == 1
    assert "logs: files merged" in ran.output
    assert "logs: done" in ran.output
    assert "events: lake: unreachable" in ran.output
