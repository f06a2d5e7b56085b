"""Creates, extends, claims, releases and empties the lake's tables for the Spark writer, by delta-rs without Spark."""

from collections.abc import Collection, Sequence
from functools import partial

from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from msgspec import structs

from services.core.dataset import Dataset
from services.core.errors import NeedsOperator, StoreDown
from services.lake import schema
from services.lake.table import CLAIMED, LakePosition, Table, rejects_uri, table_uri, within_limit
from services.runtime.settings import LakeSettings
from spark_jobs.schema import rejects_schema

_LAST_MICRO_BATCH = (1 << 62) - 1  # the highest number: after it, Delta refuses every micro-batch of the query


class Tables:
    """The table of rows and the table of rejects of one dataset. Methods raise StoreDown."""

    def __init__(self, settings: LakeSettings, dataset: Dataset) -> None:
        self.rows = Table(table_uri(settings, dataset.name))
        self.rejects = Table(rejects_uri(settings, dataset))
        self._dataset = dataset

    def prepare(self) -> None:
        """Create the missing tables and columns. Raises NeedsOperator if a column has another type."""
        schema.prepare(self.rows, schema.table_schema(self._dataset), [schema.DAY])
        schema.prepare(self.rejects, rejects_schema(), [])

    def is_empty(self) -> bool:
        return not _handle(self.rows).file_uris()

    def claim(self, handle: DeltaTable, position: LakePosition) -> None:
        """Make Spark the owner of the table, so that no other writer may begin. `position` is the position of `handle`.

        Raises StoreDown when another process has written the table since: read the table again.
        """
        self._commit(handle, structs.replace(position, query=CLAIMED))

    def release(self, handle: DeltaTable, position: LakePosition, former: Collection[str]) -> None:
        """Give up the ownership of the table, at this `position`. The commit is made on the version of `handle`.

        `former`: ids of streaming queries. A micro-batch that one of them is writing fails, because Delta refuses a
        micro-batch of a query that has stored a later one. Raises NeedsOperator when another process has written the
        table since.
        """
        try:
            self._commit(handle, position, [Transaction(query, _LAST_MICRO_BATCH) for query in former])
        except StoreDown as error:
            if not isinstance(error.__cause__, CommitFailedError):
                raise
            raise NeedsOperator(
                f"{self._dataset.name}: its table in the lake is being written: stop its writer, then try again"
            ) from error

    def empty(self, position: LakePosition, former: Collection[str]) -> None:
        """Delete all rows, and release the table at `position`, which has a new generation. `former`: see `release`.

        Queries that run meanwhile still read the deleted rows.
        """
        commit = CommitProperties(custom_metadata={"userMetadata": position.encode()})
        for table in (self.rejects, self.rows):
            within_limit(partial(_handle(table).delete, commit_properties=commit))
        self.release(_handle(self.rows), position, former)

    def _commit(self, handle: DeltaTable, position: LakePosition, transactions: Sequence[Transaction] = ()) -> None:
        commit = CommitProperties(
            custom_metadata={"userMetadata": position.encode()},
            max_commit_retries=0,
            app_transactions=list(transactions),
        )
        within_limit(
            lambda: handle.create_write_transaction(
                [], "append", handle.schema(), [schema.DAY], commit_properties=commit
            )
        )


def _handle(table: Table) -> DeltaTable:
    handle = table.latest()
    assert handle is not None  # after `prepare`
    return handle
