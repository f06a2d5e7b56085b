"""The maintenance tasks of one dataset. A task may be killed at any moment; the next run of the tasks does it again."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta

from services import stores
from services.alerts import repository as alerts
from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import Invalid, LogpipeError, NeedsOperator
from services.core.instants import DAY, to_datetime
from services.lake.maintenance import TableMaintenance
from services.ledger import floors, schema
from services.ledger.watermark import Watermarks
from services.maintenance.dead_letter_retention import DeadLetterRetention
from services.maintenance.settings import MaintainSettings
from services.postgres import clock
from services.postgres.connection import Connection, connect
from services.postgres.pool import Pool
from services.runtime import metrics
from services.stores import postgres

_CLOCK_TOLERANCE_SECONDS = 600.0  # less than the shortest LOGPIPE_VACUUM_HOURS


class MaintenanceTasks:
    """Called by one thread at a time."""

    def __init__(self, settings: MaintainSettings, dataset: Dataset) -> None:
        self._settings = settings
        self._dataset = dataset
        self._lake = TableMaintenance(settings, dataset)
        self._merged = metrics.counter(metric_names.LAKE_MERGED_FILES, dataset.name)
        self._dead_letters = DeadLetterRetention(settings, dataset, self._lake)
        self._vacuum_at = float("-inf")
        self._unmergeable: dict[date, int] = {}  # day -> its small files that compaction left as they were

    def run(self) -> Iterator[str]:
        """Run every task, and yield a sentence for everything that was done. Blocks.

        A failed task does not stop the others. The error of the first one that failed is raised at the end. The days
        are closed last: after an upgrade, all days of the history have to be closed.
        """
        errors: list[LogpipeError] = []
        did = False
        for task in (
            # What frees room on the disk comes first, because compaction needs room.
            *(self._retain, self._dead_letters.delete_old, self._forget_alerts),
            *(self._compact, self._vacuum, self._tidy, self._close_days),
        ):
            try:
                for what in task():
                    did = True
                    yield f"{self._dataset.name}: {what}"
            except LogpipeError as error:
                errors.append(error)
        if did:
            self._lake.repeat_position()
        if errors:
            raise errors[0]

    def _close_days(self) -> Iterator[str]:
        with connect(self._settings.postgres_url.get_secret_value()) as connection:
            closed = postgres.close_days(connection, self._dataset)
        if closed:
            yield f"{closed} days closed in PostgreSQL: queries read them only where they can hold what is asked for"

    def _compact(self) -> Iterator[str]:
        files, size = self._lake.size()
        metrics.gauge(metric_names.LAKE_FILES, self._dataset.name).set(files)
        metrics.gauge(metric_names.LAKE_BYTES, self._dataset.name).set(size)
        small = self._lake.small_files()
        metrics.gauge(metric_names.LAKE_SMALL_FILES, self._dataset.name).set(max(small.values(), default=0))
        for day, files in sorted(small.items()):
            # A day that is over gets few files more, and the last ones would stay for ever.
            enough = self._settings.compact_files if day == max(small) else 2
            if files < enough or files == self._unmergeable.get(day):
                continue
            start = time.monotonic()
            if merged := self._lake.compact(day):
                self._merged.inc(merged)
                yield f"{merged} files of {day} merged in {time.monotonic() - start:.1f} s"
            else:
                self._unmergeable[day] = files
        if merged := self._lake.compact_rejects(self._settings.compact_files):
            yield f"{merged} files of rejects merged"

    def empty(self) -> Iterator[str]:
        """Drop every row of a dataset on request, those of today, too, and yield a sentence for what was done. Blocks.

        Every store should have loaded everything: what a store loads later stays in it. Raises LogpipeError.
        """
        if not self._dataset.on_request:
            raise Invalid(f"{self._dataset.name} is no dataset on request: its rows are dropped by retention only")
        url = self._settings.postgres_url.get_secret_value()
        with connect(url) as connection:
            schema.require(connection)
            yield from self._drop_days(connection, floors.today(connection) + 1)
        self._lake.repeat_position()

    def _retain(self) -> Iterator[str]:
        if (retention := self._settings.retention_days) is None:
            return
        with connect(self._settings.postgres_url.get_secret_value()) as connection:
            schema.require(connection)
            yield from self._drop_days(connection, floors.today(connection) - retention)

    def _drop_days(self, connection: Connection, wanted: int) -> Iterator[str]:
        """Raise the floor to day `wanted`, then drop the days below it from each store, also when another store is
        unreachable."""
        with closing(Pool(self._settings.postgres_url.get_secret_value(), max_connections=1)) as ledger:
            settled = Watermarks(ledger).settled()
        before = floors.raise_to(connection, self._dataset.name, wanted, settled)
        keep = postgres.days_with_rows_from(
            connection, self._dataset, before, floors.floor(connection, self._dataset.name)
        )
        if before < wanted:
            yield f"days from {_date(before)} on are kept: a batch of that day is not published yet"
        if keep:
            days = ", ".join(str(_date(day)) for day in keep)
            yield f"kept until the floor has passed them: {days}, on which later batches were accepted, too"
        errors: list[LogpipeError] = []
        for store in stores.all_stores():
            if store.drop_days is None:
                continue
            try:
                days_dropped = store.drop_days(self._dataset, before, keep)
            except LogpipeError as error:
                errors.append(error)
                continue
            if days_dropped:
                yield f"{days_dropped} days before {_date(before)} dropped from {store.name}"
        if deleted := floors.delete_batches(connection, self._dataset.name):
            yield f"{deleted} batches below the floor deleted from the ledger"
        if errors:
            raise errors[0]

    def _forget_alerts(self) -> Iterator[str]:
        """Delete the alerts that were resolved before the days that retention keeps of the dataset they are about."""
        if (retention := self._settings.retention_days) is None or self._dataset.alert is None:
            return
        with connect(self._settings.postgres_url.get_secret_value()) as connection:
            schema.require(connection)
            alerts.require(connection)
            before = floors.today(connection) - retention
            if deleted := alerts.forget_resolved(connection, before * DAY // 1_000_000):
                yield f"{deleted} alerts deleted that were resolved before {_date(before)}"

    def _vacuum(self) -> Iterator[str]:
        if time.monotonic() < self._vacuum_at:
            return
        self._refuse_a_clock_ahead()
        grace = timedelta(hours=self._settings.vacuum_hours)
        if deleted := self._lake.vacuum(grace):
            yield f"{deleted} files that were replaced more than {self._settings.vacuum_hours} h ago deleted"
        self._vacuum_at = time.monotonic() + grace.total_seconds()

    def _refuse_a_clock_ahead(self) -> None:
        """Vacuum compares the age of files with this machine's clock. If the clock is ahead, a new file looks old."""
        with connect(self._settings.postgres_url.get_secret_value()) as connection:
            ahead = time.time() - clock.now_microseconds(connection) / 1e6
        if ahead > _CLOCK_TOLERANCE_SECONDS:
            raise NeedsOperator(
                f"the clock of this machine is {ahead:.0f} s ahead of PostgreSQL's: files of the lake are not deleted"
                " because of their age until both are set"
            )

    def _tidy(self) -> Iterator[str]:
        if (files := self._lake.tidy_logs()) is not None:
            metrics.gauge(metric_names.LAKE_LOG_FILES, self._dataset.name).set(files)
        return iter(())


def _date(day: int) -> date:
    return to_datetime(day * DAY).date()
