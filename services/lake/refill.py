"""The writer by which a replay adds missing rows to a table of the lake, while the sink goes on.

Each write searches one version of the table for its rows, and commits the missing ones on that very version, with the
position that this version has. So a row is never written twice, also if the sink wrote it first; and the position stays
that of the sink, whether Spark or the embedded writer fills the table.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder
from msgspec import structs

from services.core.completion import without
from services.core.dataset import ID, Dataset
from services.core.errors import NeedsOperator, RowRejected
from services.core.ledger import StorePosition
from services.core.ports import Block
from services.lake import schema
from services.lake.lines import LineReader
from services.lake.table import LakePosition, Table, table_uri
from services.lake.writer import commit_rows, on_latest
from services.runtime.settings import LakeSettings

_ATTEMPTS = 20  # of a commit: a stream under load commits every other second


class RefillWriter:
    """A Refiller. Not thread-safe."""

    def __init__(self, settings: LakeSettings) -> None:
        self._settings = settings
        self._tables: dict[Dataset, tuple[Table, LineReader]] = {}
        self._begun: dict[Dataset, LakePosition] = {}

    def prepare(self, dataset: Dataset) -> None:
        table = Table(table_uri(self._settings, dataset.name))
        schema.prepare(table, schema.table_schema(dataset), [schema.DAY])
        self._tables[dataset] = (table, LineReader(dataset))

    def begin(self, dataset: Dataset, topic_id: str, bounds: Mapping[int, tuple[int, int]]) -> StorePosition:
        table, _ = self._tables[dataset]

        def bind(handle: DeltaTable, found: LakePosition | None) -> None:
            position = _goes_on(dataset, handle, found, topic_id, bounds)
            if position != found:
                commit_rows(handle, pa.table({}), schema.writer_properties(dataset), position)
            self._begun[dataset] = position

        on_latest(table, bind)
        return table.own_position()

    def write(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self._write(block)

    def complete(self, blocks: Sequence[Block]) -> Sequence[RowRejected]:
        """`write` itself searches the table, and no former attempt can commit after it has."""
        try:
            self.write(blocks)
        except RowRejected:
            rejected = self._tables[blocks[0].dataset][1].rejections(blocks)
            self.write(without(blocks, rejected))
            return rejected
        return []

    def end_writes(self, dataset: Dataset) -> None:
        """No write lands after a look: each is a commit on the version that was searched."""

    def _write(self, block: Block) -> None:
        table, lines = self._tables[block.dataset]
        rows, begun = lines.table(block), self._begun[block.dataset]

        def append(handle: DeltaTable, position: LakePosition | None) -> None:
            if position is None or (position.generation, position.topic_id) != (begun.generation, begun.topic_id):
                raise NeedsOperator(
                    f"{block.dataset.name}: its table in the lake was emptied or bound to another topic while the"
                    " replay ran: run the same command again"
                )
            missing = rows.filter(pc.invert(pc.is_in(rows[ID.name], _present(handle, block.day, rows[ID.name]))))
            if missing.num_rows:
                commit_rows(handle, missing, schema.writer_properties(block.dataset), position)

        if rows.num_rows:
            on_latest(table, append, _ATTEMPTS)


def _goes_on(
    dataset: Dataset,
    handle: DeltaTable,
    position: LakePosition | None,
    topic_id: str,
    bounds: Mapping[int, tuple[int, int]],
) -> LakePosition:
    """Return the position, bound to the topic. Raises NeedsOperator if the table's stream cannot go on from there."""
    if position is None:
        if handle.file_uris():
            raise NeedsOperator(
                f"{dataset.name}: its table in the lake has rows, and no commit says up to where of the topic."
                f" To delete them: `logpipe stream-to-lake --rebuild {dataset.name} --yes`, then this command again"
            )
        return LakePosition.first(topic_id)
    if position.topic_id not in ("", topic_id):
        raise _must_resume(dataset, "the topic was deleted and created again since its table in the lake was filled")
    for partition, (first, end) in bounds.items():
        if not first <= (offset := position.offsets.get(partition, 0)) <= end:
            raise _must_resume(
                dataset,
                f"its table in the lake stands at offset {offset} of partition {partition}, which has only"
                f" {first} to {end}",
            )
    return structs.replace(position, topic_id=topic_id)


def _must_resume(dataset: Dataset, reason: str) -> NeedsOperator:
    return NeedsOperator(
        f"{dataset.name}: {reason}. Stop what fills the lake, run `logpipe stream-to-lake --resume {dataset.name}`,"
        " start it again, and run this command again: it brings what the topic no longer has"
    )


def _present(handle: DeltaTable, day: int, ids: pa.ChunkedArray) -> pa.Array:
    """Return which of `ids`, of rows that were accepted on `day`, the version of `handle` has."""
    bounds = pc.min_max(ids).as_py()
    partition = (date(1970, 1, 1) + timedelta(days=day)).isoformat()
    statement = (
        f"SELECT {ID.name} FROM t WHERE {schema.DAY} = DATE '{partition}'"  # noqa: S608 - a date and numbers
        f" AND {ID.name} BETWEEN {bounds['min']:d} AND {bounds['max']:d}"
    )
    found = pa.RecordBatchReader.from_stream(QueryBuilder().register("t", handle).execute(statement))
    parts = [part.column(0).filter(pc.is_in(part.column(0), ids.combine_chunks())) for part in found]
    return pa.concat_arrays(parts) if parts else pa.array([], pa.int64())
