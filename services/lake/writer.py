"""The embedded writer, which loads blocks of stream_to_store into a Delta table by delta-rs, every row once.

One commit has the rows and the new position. It is made on the version of the table that had the former position, and
fails if another process has committed since. The writer leaves out a block that the table has, and raises Fenced for a
block that does not follow the position. So of two writers of one table, the slower one is fenced.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError
from msgspec import structs

from services.core.completion import without
from services.core.dataset import Dataset
from services.core.errors import Fenced, NeedsOperator, RowRejected, StoreDown
from services.core.ports import Block
from services.lake import NAME, schema
from services.lake.lines import LineReader
from services.lake.table import EMBEDDED, LakePosition, Table, table_uri, within_limit
from services.runtime.settings import LakeSettings

_ATTEMPTS = 5  # of a commit: only maintenance and a replay also commit


class EmbeddedWriter:
    """An OwnProgressWriter. Not thread-safe."""

    wait_seconds: ClassVar[float] = 2.0  # a commit takes a second, even for few rows

    def __init__(self, settings: LakeSettings) -> None:
        self._settings = settings
        self._tables: dict[Dataset, tuple[Table, LineReader]] = {}
        self._ended: dict[Dataset, int] = {}  # how often the writes had been ended when the position was read

    def prepare(self, dataset: Dataset) -> None:
        table = Table(table_uri(self._settings, dataset.name))
        schema.prepare(table, schema.table_schema(dataset), [schema.DAY])
        self._tables[dataset] = (table, LineReader(dataset))

    def positions(self, dataset: Dataset, topic_id: str) -> Mapping[int, int]:
        handle, found = self._tables[dataset][0].current_version()
        position = _owned(dataset, topic_id, handle, found)
        self._ended[dataset] = position.ended_writes
        return position.offsets

    def write(self, blocks: Sequence[Block]) -> None:
        dataset = blocks[0].dataset
        table, lines = self._tables[dataset]
        rows = [lines.table(block) for block in blocks]

        def append(handle: DeltaTable, found: LakePosition | None) -> None:
            position = _owned(dataset, blocks[0].topic_id, handle, found)
            if self._ended.setdefault(dataset, position.ended_writes) != position.ended_writes:
                raise Fenced(f"{table.uri}: an operator has ended the writes that were under way")
            new = [number for number, block in enumerate(blocks) if _is_next(block, position)]
            if new:
                offsets = position.offsets | {blocks[number].partition: blocks[number].last + 1 for number in new}
                following = structs.replace(position, offsets=offsets, query=EMBEDDED)
                commit_rows(
                    handle,
                    pa.concat_tables([rows[number] for number in new]),
                    schema.writer_properties(dataset),
                    following,
                )

        on_latest(table, append)

    def complete(self, blocks: Sequence[Block]) -> Sequence[RowRejected]:
        """Call `write` again, which reads the table's position and leaves out the blocks that the table has."""
        try:
            self.write(blocks)
        except RowRejected:
            rejected = self.rejections(blocks)
            self.write(without(blocks, rejected))
            return rejected
        return []

    def rejections(self, blocks: Sequence[Block]) -> list[RowRejected]:
        return self._tables[blocks[0].dataset][1].rejections(blocks)

    def is_loaded(self, block: Block) -> bool:
        handle, found = self._tables[block.dataset][0].current_version()
        return not _is_next(block, _owned(block.dataset, block.topic_id, handle, found))

    def end_writes(self, dataset: Dataset) -> None:
        """Make a commit, after which writers that have read the position before it are Fenced.

        Raises NeedsOperator when Spark fills the table: this process cannot know whether Spark is writing a batch.
        """
        table = Table(table_uri(self._settings, dataset.name))

        def fence(handle: DeltaTable, position: LakePosition | None) -> None:
            if position is None:
                return
            if position.query not in ("", EMBEDDED):
                raise NeedsOperator(
                    f"{dataset.name}: its table in the lake is filled by Spark (query {position.query}): stop"
                    f" stream-to-lake, run `logpipe stream-to-lake --resume {dataset.name}`, then this command again,"
                    " and start stream-to-lake afterwards"
                )
            following = structs.replace(position, owner_number=position.ended_writes + 1)
            commit_rows(handle, pa.table({}), schema.writer_properties(dataset), following)

        if table.latest() is not None:
            on_latest(table, fence)


def on_latest(
    table: Table, commit: Callable[[DeltaTable, LakePosition | None], None], attempts: int = _ATTEMPTS
) -> None:
    """Call `commit` with the newest version of the table and its position, again if another process has committed."""
    for _ in range(attempts):
        handle, position = table.current_version()
        try:
            within_limit(partial(commit, handle, position))
            return
        except StoreDown as error:
            if not isinstance(error.__cause__, CommitFailedError):
                raise
    raise StoreDown(NAME, f"{table.uri}: each of {attempts} commits failed, because another process had committed")


def _owned(dataset: Dataset, topic_id: str, handle: DeltaTable, position: LakePosition | None) -> LakePosition:
    """Return the position of the table, as this writer's own. Raises NeedsOperator if it may not write the table."""
    release = f"`logpipe stream-to-lake --resume {dataset.name}`"
    rebuild = f"`logpipe stream-to-lake --rebuild {dataset.name} --yes`"
    if position is None:
        if handle.file_uris():
            raise NeedsOperator(
                f"{dataset.name}: its table in the lake has rows, and no commit says up to where of the topic."
                f" To delete them and read the topic again: {rebuild}"
            )
        return LakePosition.first(topic_id)
    if position.query not in ("", EMBEDDED):
        raise NeedsOperator(
            f"{dataset.name}: its table in the lake is filled by Spark (query {position.query}), and has one writer at"
            f" a time. To hand it over: stop stream-to-lake, then {release}"
        )
    if position.topic_id not in ("", topic_id):
        raise NeedsOperator(
            f"{dataset.name}: the topic {dataset.topic} was deleted and created again since its table in the lake was"
            f" filled. To go on with what the new one has: {release}. To delete the rows first: {rebuild}"
        )
    return structs.replace(position, topic_id=topic_id, start={})


def _is_next(block: Block, position: LakePosition) -> bool:
    """Return False if the block is in the table already. Raises Fenced if it does not follow the table's last block."""
    next_offset = position.offsets.get(block.partition, 0)
    if block.last < next_offset:
        return False
    if block.first != next_offset:
        raise Fenced(
            f"{block.dataset.name}: offsets {block.first} to {block.last} of partition {block.partition} do not follow"
            f" the position of the table, {next_offset}"
        )
    return True


def commit_rows(handle: DeltaTable, rows: pa.Table, properties: WriterProperties, position: LakePosition) -> None:
    """Commit the rows and the position on the version of `handle`. Raises CommitFailedError if there is a newer one."""
    commit = CommitProperties(custom_metadata={"userMetadata": position.encode()}, max_commit_retries=0)
    if rows.num_rows:
        write_deltalake(handle, rows, mode="append", writer_properties=properties, commit_properties=commit)
    else:
        handle.create_write_transaction([], "append", handle.schema(), [schema.DAY], commit_properties=commit)
