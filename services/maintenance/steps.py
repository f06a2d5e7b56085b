"""What is done for one dataset. Every step may be killed at any moment, and is done again by the next round."""

import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta

from services import stores
from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.core.instants import DAY, to_datetime
from services.lake.maintenance import TableMaintenance
from services.ledger import floors, schema
from services.maintenance.settings import MaintainSettings
from services.postgres.connection import connect
from services.runtime import metrics

_DAY_SECONDS = 86_400


class Steps:
    def __init__(self, settings: MaintainSettings, dataset: Dataset, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._dataset = dataset
        self._clock = clock
        self._lake = TableMaintenance(settings, dataset)
        self._vacuum_at = 0.0

    def all(self) -> Iterator[str]:
        """What was done, step by step. One that fails holds up no other; then StoreDown is raised at the end."""
        errors: list[LogpipeError] = []
        did = False
        for step in (self._compact, self._retain, self._vacuum):
            try:
                for what in step():
                    did = True
                    yield f"{self._dataset.name}: {what}"
            except LogpipeError as error:
                errors.append(error)
        if did:
            self._lake.repeat_position()
        if errors:
            raise errors[0]

    def _compact(self) -> Iterator[str]:
        small = self._lake.small_files()
        metrics.gauge(metric_names.LAKE_SMALL_FILES, self._dataset.name).set(max(small.values(), default=0))
        for day, files in sorted(small.items()):
            if files >= self._settings.compact_files:
                start = self._clock()
                merged = self._lake.compact(day)
                yield f"{merged} files of {day} merged in {self._clock() - start:.1f} s"

    def _retain(self) -> Iterator[str]:
        """The floor first, so that nobody looks for what is being dropped; then each store, even with one away."""
        if self._settings.retention_days is None:
            return
        wanted = int(self._clock()) // _DAY_SECONDS - self._settings.retention_days
        with connect(self._settings.postgres_url.get_secret_value()) as connection:
            schema.prepare(connection)
            before = floors.raise_to(connection, self._dataset.name, wanted)
        if before < wanted:
            yield f"days from {_date(before)} on are kept: a batch of that day is not published yet"
        errors: list[LogpipeError] = []
        for store in stores.names():
            try:
                days = stores.drop_days(store, self._dataset, before)
            except LogpipeError as error:
                errors.append(error)
                continue
            if days:
                yield f"{days} days before {_date(before)} dropped from {store}"
        if errors:
            raise errors[0]

    def _vacuum(self) -> Iterator[str]:
        if self._clock() < self._vacuum_at:
            return
        grace = timedelta(hours=self._settings.vacuum_hours)
        if deleted := self._lake.vacuum(grace):
            yield f"{deleted} files that were replaced more than {self._settings.vacuum_hours} h ago deleted"
        self._vacuum_at = self._clock() + grace.total_seconds()


def _date(day: int) -> date:
    return to_datetime(day * DAY).date()
