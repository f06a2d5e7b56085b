"""The rounds of a long-running `logpipe maintain`, in a thread until it is told to stop."""

import time
from collections.abc import Sequence
from threading import Event, Thread

from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.maintenance.settings import MaintainSettings
from services.maintenance.steps import Steps
from services.runtime import logs

_LONGEST_STEP = 3600.0  # seconds: more than a thousand million rows are merged in that time

_log = logs.get("maintenance")


class Rounds:
    def __init__(self, settings: MaintainSettings, datasets: Sequence[Dataset]) -> None:
        self._pause = settings.maintain_seconds
        self._stop = Event()
        self._steps = {dataset.name: Steps(settings, dataset) for dataset in datasets}
        self._problems: dict[str, str] = {}
        self._moved_at = time.monotonic()
        self._thread = Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A step under way is left: nothing of it is seen until it commits, and the next round does it again."""
        self._stop.set()

    def problem(self, dataset: str) -> str | None:
        """Also when a step does not end: HDFS may be waited for for ever."""
        if (seconds := time.monotonic() - self._moved_at) > self._pause + _LONGEST_STEP:
            return f"a step has not ended for {seconds / 60:.0f} min: see whether HDFS hangs, and start this anew"
        return self._problems.get(dataset)

    def _run(self) -> None:
        while not self._stop.is_set():
            for name, steps in self._steps.items():
                self._round(name, steps)
                self._moved_at = time.monotonic()
            self._stop.wait(self._pause)

    def _round(self, name: str, steps: Steps) -> None:
        try:
            for what in steps.all():
                _log.info(what)
                self._moved_at = time.monotonic()
            self._problems.pop(name, None)
        except LogpipeError as error:
            self._problems[name] = str(error)
            _log.warning("to be tried again", dataset=name, reason=str(error))
        except Exception as error:  # noqa: BLE001 - a thread must not die in silence
            self._problems[name] = f"unexpected error: {error}"
            _log.exception("unexpected error", dataset=name)
