"""The transaction log of a table kept short: checkpoints are written, and expired commits deleted.

Only `logpipe maintain` does this. The table's properties (`schema.prepare`) keep it out of the commits of the writers.
Every reader lists the whole log, because HDFS cannot list from a name on, so a long log slows down every query.
"""

from contextlib import suppress

from deltalake import CommitProperties
from deltalake.exceptions import CommitFailedError
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileInfo, FileSelector, PyFileSystem

from services.lake.table import Table, last_position, translated

_DIGITS = 20  # of the version, with which the name of a file begins
_COMMITS = 50
"""Commits after which a new checkpoint pays: a checkpoint costs as much as three commits."""


class TableLog:
    """The log of one table; a table that is not there has none. Methods raise StoreDown."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._checkpoint = -_COMMITS  # the version of the last checkpoint that this object wrote

    def tidy(self) -> int | None:
        """Write a checkpoint and delete expired commits. Return the number of files left in the log.

        None: fewer than 50 commits were added since the last call that did something. The commits of the last hour
        (`delta.logRetentionDuration`) stay, and the newest commit always stays: it must have the table's position.
        """
        handle = self._table.latest()
        if handle is None or handle.version() < self._checkpoint + _COMMITS:
            return None
        self.repeat_position()
        if (handle := self._table.latest()) is None:
            return None
        with translated():
            handle.create_checkpoint()
            handle.cleanup_metadata()
            self._checkpoint = handle.version()
            return _delete_checksums(PyFileSystem(DeltaStorageHandler(self._table.uri)))

    def repeat_position(self) -> None:
        """Commit the table's position again, unless the newest commit has it.

        A commit of another process at the same time is a writer's, which has a newer position.
        """
        if self._table.latest() is None:
            return
        handle, position = self._table.current_version()
        if position is None or last_position(handle, 1) == position:
            return
        commit = CommitProperties(custom_metadata={"userMetadata": position.encode()}, max_commit_retries=0)
        with translated(), suppress(CommitFailedError):
            handle.create_write_transaction(
                [], "append", handle.schema(), handle.metadata().partition_columns, commit_properties=commit
            )


def _delete_checksums(files: PyFileSystem) -> int:
    """Delete the .crc files of expired commits, which delta-rs leaves. Return the number of files that are left.

    Older releases let Spark write a .crc file with each commit.
    """
    found: list[FileInfo] = files.get_file_info(FileSelector("_delta_log"))
    oldest = min((file.base_name for file in found if file.extension == "json"), default="")
    expired = [file.path for file in found if file.extension == "crc" and file.base_name[:_DIGITS] < oldest[:_DIGITS]]
    for path in expired:
        files.delete_file(path)
    return len(found) - len(expired)
