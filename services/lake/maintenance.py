"""Keeping a dataset's tables fit while they are written and read: small files merged, old days and old files removed.

Each step is one commit of a table or none, so that it may be killed at any moment. No step writes the position of the
table (`Position`): a copy made when a step begins would be out of date when the step commits. Therefore the position is
repeated afterwards, in a commit of its own on the very version that has it, and is not lost with the old commits.
"""

from collections.abc import Collection, Sequence
from datetime import date, timedelta
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder

from services.core.dataset import Dataset
from services.lake.log import TableLog
from services.lake.schema import DAY, writer_properties
from services.lake.table import Table, rejects_uri, table_uri, translated
from services.runtime.settings import LakeSettings

_TARGET_BYTES = 128 << 20
_SMALL_BYTES = _TARGET_BYTES // 2
_TASKS = 1  # of one compaction at a time, so that queries keep their CPU
# Files that came one after the other stay neighbours, and each group of rows has statistics: a time range reads few.
# Smaller groups could be skipped more often, but each group that is read costs a request of milliseconds to HDFS.
_GROUP_ROWS = 1 << 19


class TableMaintenance:
    """Maintains the table of a dataset's rows, and Spark's table of its rejects. Skips a table that does not exist.

    All methods raise StoreDown.
    """

    def __init__(self, settings: LakeSettings, dataset: Dataset) -> None:
        self._dataset = dataset
        self._table = Table(table_uri(settings, dataset.name))
        self._rejects = Table(rejects_uri(settings, dataset))
        self._log, self._rejects_log = TableLog(self._table), TableLog(self._rejects)
        self._rejects_floor = 0  # the rejects of batches below this one were deleted by this object

    def size(self) -> tuple[int, int]:
        """Return the number of the table's data files, and their bytes."""
        if (snapshot := self._table.snapshot()) is None:
            return 0, 0
        return snapshot.files.num_rows, pc.sum(snapshot.files["size_bytes"]).as_py() or 0

    def small_files(self) -> dict[date, int]:
        """Return day -> the number of its files that compaction would merge."""
        if (snapshot := self._table.snapshot()) is None:
            return {}
        small = pc.less(snapshot.files["size_bytes"], _SMALL_BYTES)
        counted = pc.value_counts(snapshot.files[f"partition.{DAY}"].filter(small))
        return {day["values"]: day["counts"] for day in counted.to_pylist()}

    def compact(self, day: date) -> int:
        """Merge the small files of one day, and return how many were replaced."""
        if (handle := self._table.latest()) is None:
            return 0
        with translated():
            done = handle.optimize.compact(
                partition_filters=[(DAY, "=", day.isoformat())],
                target_size=_TARGET_BYTES,
                max_concurrent_tasks=_TASKS,
                writer_properties=writer_properties(self._dataset, _GROUP_ROWS),
            )
        return int(done["numFilesRemoved"])

    def compact_rejects(self, files: int) -> int:
        """Merge the small files of the rejects if there are at least `files`, and return how many were replaced."""
        if (handle := self._rejects.latest()) is None:
            return 0
        with translated():
            sizes = pa.table(handle.get_add_actions(flatten=True))["size_bytes"]
            if (pc.sum(pc.less(sizes, _SMALL_BYTES)).as_py() or 0) < files:
                return 0
            done = handle.optimize.compact(target_size=_TARGET_BYTES, max_concurrent_tasks=_TASKS)
        return int(done["numFilesRemoved"])

    def drop_rejects(self, floor: int) -> int:
        """Delete the rejects of batches below `floor`, and return how many.

        The table is read only when the floor has risen.
        """
        if floor <= self._rejects_floor or (handle := self._rejects.latest()) is None:
            return 0
        below = f"batch_id < {floor:d}"
        with translated():
            engine = QueryBuilder().register("t", handle)
            rows = pa.table(engine.execute(f"SELECT count(*) AS n FROM t WHERE {below}").read_all())  # noqa: S608
            found = int(rows["n"][0].as_py())
            if found:
                handle.delete(below)
        self._rejects_floor = floor
        return found

    def drop_days(self, before: date, keep: Collection[date] = ()) -> int:
        """Remove the days of acceptance before `before`, except those in `keep`, and return how many."""
        if (handle := self._table.latest()) is None:
            return 0
        with translated():
            days = sorted({date.fromisoformat(partition[DAY]) for partition in handle.partitions()} - set(keep))
            dropped = [day for day in days if day < before]
            if dropped:
                handle.delete(_on_days(dropped))
        return len(dropped)

    def vacuum(self, grace: timedelta) -> int:
        """Delete files that no version younger than `grace` (whole hours) needs, and return how many.

        Files that a crash left are deleted, too.
        """
        handles = (self._table.latest(), self._rejects.latest())
        return sum(_vacuum(handle, grace) for handle in handles if handle)

    def tidy_logs(self) -> int | None:
        """Keep the transaction logs short, and return how many files the table's log has.

        Return None if the log was not looked at.
        """
        self._rejects_log.tidy()
        return self._log.tidy()

    def repeat_position(self) -> None:
        """Commit the position again. Another commit at the same time has a newer position; then nothing is written."""
        self._log.repeat_position()


def _vacuum(handle: DeltaTable, grace: timedelta) -> int:
    hours = int(grace.total_seconds() // 3600)
    vacuum = partial(handle.vacuum, hours, enforce_retention_duration=False, full=True)
    with translated():
        # A vacuum would commit even when there is nothing to delete.
        return len(vacuum(dry_run=False)) if vacuum(dry_run=True) else 0


def _on_days(days: Sequence[date]) -> str:
    """Return the condition that a row was accepted on one of `days`."""
    listed = ", ".join(f"DATE '{day.isoformat()}'" for day in days)
    return f"{DAY} IN ({listed})"
