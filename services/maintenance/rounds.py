"""The rounds of a long-running `logpipe maintain`, in a thread until the process stops."""

import time
from collections.abc import Sequence

from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.maintenance.settings import MaintainSettings
from services.maintenance.steps import Steps
from services.runtime import logs
from services.runtime.workers import Worker

_LONGEST_STEP = 3600.0  # seconds: more than a thousand million rows are merged in that time

_log = logs.get("maintenance")


class Rounds:
    def __init__(self, settings: MaintainSettings, datasets: Sequence[Dataset]) -> None:
        self._pause = settings.maintain_seconds
        self._steps = {dataset.name: Steps(settings, dataset) for dataset in datasets}
        self._problems: dict[str, str] = {}
        self._moved_at = time.monotonic()

    def worker(self) -> Worker:
        """Return the thread of the rounds, not started yet.

        A step under way may be abandoned at the stop: no reader sees any of it before it commits, and the next round
        does it again.
        """
        return Worker("maintenance", self._turn)

    def problem(self, dataset: str) -> str | None:
        """Return why the dataset's last round failed, or that a step hangs: HDFS may never reply."""
        if (seconds := time.monotonic() - self._moved_at) > self._pause + _LONGEST_STEP:
            return f"a step has not ended for {seconds / 60:.0f} min: see whether HDFS hangs, and start this anew"
        return self._problems.get(dataset)

    def _turn(self) -> float:
        for name, steps in self._steps.items():
            self._round(name, steps)
            self._moved_at = time.monotonic()
        return self._pause

    def _round(self, name: str, steps: Steps) -> None:
        try:
            for what in steps.all():
                _log.info(what)
                self._moved_at = time.monotonic()
            self._problems.pop(name, None)
        except LogpipeError as error:
            self._problems[name] = str(error)
            _log.warning("round failed, retrying in the next one", dataset=name, reason=str(error))
        except Exception as error:  # noqa: BLE001 - the other datasets are to be maintained
            self._problems[name] = f"unexpected error: {error}"
            _log.exception("round failed, retrying in the next one", dataset=name)
