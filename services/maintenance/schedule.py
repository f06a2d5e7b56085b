"""Runs the maintenance tasks of a long-running `logpipe maintain` again and again, in a thread."""

import time
from collections.abc import Sequence

from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.maintenance.settings import MaintainSettings
from services.maintenance.tasks import MaintenanceTasks
from services.runtime import logs
from services.runtime.workers import Worker

_LONGEST_TASK = 3600.0  # seconds: a billion rows (10^9) are merged in that time

_log = logs.get("maintenance")


class MaintenanceSchedule:
    def __init__(self, settings: MaintainSettings, datasets: Sequence[Dataset]) -> None:
        self._pause = settings.maintain_seconds
        self._tasks = {dataset.name: MaintenanceTasks(settings, dataset) for dataset in datasets}
        self._failures: dict[str, str] = {}
        self._moved_at = time.monotonic()

    def worker(self) -> Worker:
        """Return the thread that runs the tasks, not started yet.

        A running task may be abandoned at the stop: no reader sees any of it before it commits, and the next run does
        it again.
        """
        return Worker("maintenance", self._turn)

    def health(self, dataset: str) -> str | None:
        """Return why the dataset's last run failed, or that a task hangs; else None. Any thread may call it."""
        if (seconds := time.monotonic() - self._moved_at) > self._pause + _LONGEST_TASK:
            return (
                f"a maintenance task has not ended for {seconds / 60:.0f} min: check whether HDFS hangs, and restart"
                " this process"
            )
        return self._failures.get(dataset)

    def _turn(self) -> float:
        for name, tasks in self._tasks.items():
            self._run(name, tasks)
            self._moved_at = time.monotonic()
        return self._pause

    def _run(self, name: str, tasks: MaintenanceTasks) -> None:
        try:
            for what in tasks.run():
                _log.info(what)
                self._moved_at = time.monotonic()
            self._failures.pop(name, None)
        except LogpipeError as error:
            self._failures[name] = str(error)
            _log.warning("maintenance failed, retrying in the next run", dataset=name, reason=str(error))
        except Exception as error:  # noqa: BLE001 - the other datasets are to be maintained
            self._failures[name] = f"unexpected error: {error}"
            _log.exception("maintenance failed, retrying in the next run", dataset=name)
