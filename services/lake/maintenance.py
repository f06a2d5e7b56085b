"""Keeping a dataset's table fit while it is written and read: small files merged, old days and old files removed.

Each step is one commit of the table or none, so it may be killed at any moment. None says how far the table has come
(`Position`): a copy made when a step begins is out of date when it commits. So the position is repeated after them, in
a commit of its own on the very version that has it: then it is not lost when old commits are forgotten.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import date, timedelta
from functools import partial

from deltalake import CommitProperties
from deltalake.exceptions import CommitFailedError

from services.core.dataset import Dataset
from services.lake.schema import DAY, layout
from services.lake.table import Table, table_uri, translated
from services.runtime.settings import LakeSettings

_TARGET_BYTES = 128 << 20
_SMALL_BYTES = _TARGET_BYTES // 2
_TASKS = 1  # at once: others have work to do
# Files that came one after the other stay neighbours, and each group of rows has statistics: a time range reads few.
# Smaller ones would be passed over more often; where they are not, each costs a request of milliseconds to HDFS.
_GROUP_ROWS = 1 << 19


class TableMaintenance:
    """Of one dataset; a table that is not there needs none. All methods raise StoreDown."""

    def __init__(self, settings: LakeSettings, dataset: Dataset) -> None:
        self._dataset = dataset
        self._table = Table(table_uri(settings, dataset.name))

    def small_files(self) -> dict[date, int]:
        """Day -> how many files it has that compaction would merge."""
        if (snapshot := self._table.snapshot()) is None:
            return {}
        files = snapshot.files
        sizes = zip(files[f"partition.{DAY}"].to_pylist(), files["size_bytes"].to_pylist(), strict=True)
        return dict(Counter(day for day, size in sizes if size < _SMALL_BYTES))

    def compact(self, day: date) -> int:
        """Merge the small files of one day; how many were replaced."""
        if (handle := self._table.latest()) is None:
            return 0
        with translated():
            done = handle.optimize.compact(
                partition_filters=[(DAY, "=", day.isoformat())],
                target_size=_TARGET_BYTES,
                max_concurrent_tasks=_TASKS,
                writer_properties=layout(self._dataset, _GROUP_ROWS),
            )
        return int(done["numFilesRemoved"])

    def drop_days(self, before: date, keep: Collection[date] = ()) -> int:
        """Remove the days of acceptance before `before`, except those in `keep`; how many."""
        if (handle := self._table.latest()) is None:
            return 0
        with translated():
            days = sorted({date.fromisoformat(partition[DAY]) for partition in handle.partitions()} - set(keep))
            dropped = [day for day in days if day < before]
            if dropped:
                handle.delete(_on_days(dropped))
        return len(dropped)

    def vacuum(self, grace: timedelta) -> int:
        """Delete files that no version younger than `grace` (whole hours) needs, also what a crash left; how many."""
        if (handle := self._table.latest()) is None:
            return 0
        hours = int(grace.total_seconds() // 3600)
        vacuum = partial(handle.vacuum, hours, enforce_retention_duration=False, full=True)
        with translated():
            # It would commit even when there is nothing to delete.
            return len(vacuum(dry_run=False)) if vacuum(dry_run=True) else 0

    def repeat_position(self) -> None:
        """In a commit of its own, unless somebody commits at the same time: that is a writer, with a position."""
        handle, position = self._table.standing()
        if position is None:
            return
        commit = CommitProperties(custom_metadata={"userMetadata": position.encode()}, max_commit_retries=0)
        with translated(), suppress(CommitFailedError):
            handle.create_write_transaction([], "append", handle.schema(), [DAY], commit_properties=commit)


def _on_days(days: Sequence[date]) -> str:
    """The condition that a row was accepted on one of `days`."""
    listed = ", ".join(f"DATE '{day.isoformat()}'" for day in days)
    return f"{DAY} IN ({listed})"
