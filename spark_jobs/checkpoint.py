"""The checkpoint of a streaming query beside its table: do the two belong together, and where does the query begin?

A query that begins with a lost, foreign or older checkpoint would double rows or leave some out, in silence. So the
two are compared before it starts: the id of the query and the offsets of the last batch stand in both.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from hdfs_native import Client

from services.core.dataset import Dataset
from services.core.errors import NeedsOperator
from services.lake.table import EMBEDDED, NAME, Position, within_limit
from services.runtime.settings import LakeSettings

Offsets = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`committed`: the last batch that Spark knows to be done, -1 if none. `ends`: of each batch still recorded."""

    query: str
    committed: int
    ends: Mapping[int, Offsets]


class CheckpointFolder:
    """Of one dataset's query. Methods raise StoreDown."""

    def __init__(self, settings: LakeSettings, dataset: Dataset) -> None:
        path = f"{settings.lake_path.rstrip('/')}/checkpoints/{dataset.name}"
        self.uri = settings.hdfs_url.rstrip("/") + path
        self._path = path
        self._topic = dataset.topic
        self._hdfs = Client(settings.hdfs_url)

    def load(self) -> Checkpoint | None:
        """None when there is none."""
        return within_limit(self._load)

    def query(self) -> str:
        """The id of the query it is of."""
        return within_limit(self._query)

    def end(self, batch: int) -> Offsets:
        """Partition -> next offset after `batch`; before the first batch, where the query began."""
        return within_limit(lambda: self._offsets(f"offsets/{batch}" if batch >= 0 else "sources/0/0"))

    def delete(self) -> None:
        within_limit(lambda: self._hdfs.delete(self._path, recursive=True))

    def _load(self) -> Checkpoint | None:
        try:
            query = self._query()
        except FileNotFoundError:
            return None
        ends = {batch: self._offsets(f"offsets/{batch}") for batch in self._batches("offsets")}
        return Checkpoint(query, max(self._batches("commits"), default=-1), ends)

    def _query(self) -> str:
        query: str = msgspec.json.decode(self._read("metadata"))["id"]
        return query

    def _batches(self, folder: str) -> list[int]:
        try:
            names = [status.path.rsplit("/", 1)[-1] for status in self._hdfs.list_status(f"{self._path}/{folder}")]
        except FileNotFoundError:
            return []
        return [int(name) for name in names if name.isdigit()]

    def _offsets(self, name: str) -> Offsets:
        last_line = self._read(name).rstrip().rsplit(b"\n", 1)[-1]
        return msgspec.json.decode(last_line, type=dict[str, dict[int, int]])[self._topic]

    def _read(self, name: str) -> bytes:
        with self._hdfs.read(f"{self._path}/{name}") as file:
            data: bytes = file.read()
        return data


def starting_offsets(
    dataset: Dataset,
    position: Position | None,
    table_is_empty: bool,
    checkpoint: Checkpoint | None,
    topic_id: str,
    bounds: Mapping[int, tuple[int, int]],
) -> Offsets:
    """Where a query without batches begins, by partition; those not named begin at the topic's beginning.

    `position`, `table_is_empty`: of the table. `bounds`: the topic's, first and next offset by partition. Raises
    NeedsOperator when going on would double rows or leave some out.
    """
    if position is None and not table_is_empty:
        raise _refused(dataset, "its table has rows that no batch of this job put there")
    if position and position.topic_id not in ("", topic_id):
        raise _refused(
            dataset,
            f"the topic {dataset.topic} was deleted and made anew since its table was filled",
            lost=True,
        )
    if position and position.query == EMBEDDED:
        raise _refused(dataset, "its table is filled by the embedded writer; if that is to end, stop it first")
    if position is None or not position.query:
        _check_unowned(dataset, checkpoint)
    elif checkpoint is None:
        raise _refused(dataset, "its checkpoint is missing, but its table has rows")
    else:
        _check_owned(dataset, position, checkpoint)
    offsets = position.offsets if position else {}
    for partition, offset in offsets.items():
        first, end = bounds.get(partition, (0, 0))
        if not first <= offset <= end:
            raise _refused(
                dataset,
                f"its table stands at offset {offset} of partition {partition} of {dataset.topic}, which has only"
                f" {first} to {end}: messages were deleted before they were read",
                lost=True,
            )
    return offsets


def _check_unowned(dataset: Dataset, checkpoint: Checkpoint | None) -> None:
    if checkpoint and checkpoint.committed >= 0:
        raise _refused(
            dataset,
            f"its checkpoint knows of batches up to {checkpoint.committed}, of which the table has none",
        )


def _check_owned(dataset: Dataset, position: Position, checkpoint: Checkpoint) -> None:
    if checkpoint.query != position.query:
        raise _refused(
            dataset, f"its checkpoint is of query {checkpoint.query}, but the table was filled by {position.query}"
        )
    if position.batch - checkpoint.committed not in (0, 1):
        raise _refused(
            dataset,
            f"its checkpoint has come to batch {checkpoint.committed}, but the table to batch {position.batch}:"
            " one of the two was put back to an older state",
        )
    if checkpoint.ends.get(position.batch) != position.offsets:
        raise _refused(dataset, f"batch {position.batch} ends elsewhere in its checkpoint than in the table")


def _refused(dataset: Dataset, what: str, *, lost: bool = False) -> NeedsOperator:
    why = "Going on would double rows or leave some out, so nothing was done."
    return NeedsOperator(f"{dataset.name}: {what}. {why} {ways_out(dataset, lost)}")


def ways_out(dataset: Dataset, lost: bool) -> str:
    """What an operator can do. `lost`: the topic no longer has all that the table lacks."""
    command = "logpipe stream-to-lake"
    goes_on = (
        f"with what the topic still has, without what was deleted (`logpipe verify --store {NAME}` will name it)"
        if lost
        else "from where the table stands"
    )
    return (
        f"To go on {goes_on}: `{command} --resume {dataset.name}`. To delete the table and read again all that the"
        f" topic still has: `{command} --rebuild {dataset.name}`."
    )
