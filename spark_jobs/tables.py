"""The lake's tables as their writer sees them: made, extended, emptied, released. By delta-rs, without Spark."""

from functools import partial

from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError

from services.core.dataset import Dataset
from services.core.errors import NeedsOperator, StoreDown
from services.lake import schema
from services.lake.table import Position, Table, rejects_uri, table_uri, within_limit
from services.runtime.settings import LakeSettings
from spark_jobs.schema import rejects_schema


class Tables:
    """Those of one dataset. Methods raise StoreDown."""

    def __init__(self, settings: LakeSettings, dataset: Dataset) -> None:
        self.rows = Table(table_uri(settings, dataset.name))
        self.rejects = Table(rejects_uri(settings, dataset))
        self._dataset = dataset

    def prepare(self) -> None:
        """Create what is missing, also columns; raises NeedsOperator when a column is of another type."""
        schema.prepare(self.rows, schema.table_schema(self._dataset), [schema.DAY])
        schema.prepare(self.rejects, rejects_schema(), [])

    def is_empty(self) -> bool:
        return not _handle(self.rows).file_uris()

    def release(self, handle: DeltaTable, position: Position) -> None:
        """From now on nobody owns the table, and it stands at `position`: committed on the very version of `handle`.

        Raises NeedsOperator when somebody has written it since.
        """
        commit = CommitProperties(custom_metadata={"userMetadata": position.encode()}, max_commit_retries=0)
        try:
            within_limit(
                lambda: handle.create_write_transaction(
                    [], "append", handle.schema(), [schema.DAY], commit_properties=commit
                )
            )
        except StoreDown as error:
            if not isinstance(error.__cause__, CommitFailedError):
                raise
            raise NeedsOperator(
                f"{self._dataset.name}: its table in the lake is being written: stop its writer, then try again"
            ) from error

    def empty(self) -> None:
        """Delete all rows, and release the table, of a new generation, at the topic's beginning.

        Queries that run meanwhile are not disturbed.
        """
        nothing = Position.first()
        commit = CommitProperties(custom_metadata={"userMetadata": nothing.encode()})
        for table in (self.rejects, self.rows):
            within_limit(partial(_handle(table).delete, commit_properties=commit))
        self.release(_handle(self.rows), nothing)


def _handle(table: Table) -> DeltaTable:
    handle = table.latest()
    assert handle is not None  # after `prepare`
    return handle
