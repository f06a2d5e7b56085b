"""Compares the checkpoint of a streaming query with its table, and finds the offsets at which the query starts.

A query that starts with a lost, foreign or older checkpoint would double rows or leave rows out, in silence. So the
checkpoint is compared with the table before the query starts: both have the id of the query, and the offsets of the
last micro-batch.

A file of the checkpoint may be damaged, because HDFS lost its end on a full disk or in a power failure. Two kinds of
damage lose nothing. If the file belongs to a micro-batch that the table does not have, Spark plans that micro-batch
again. If the file only marks the table's last micro-batch as done, Spark runs the micro-batch again, and Delta skips
its rows. Such a file is removed, because Spark itself would fail on it. Any other damage is refused.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import msgspec
from hdfs_native import Client

from services.core.dataset import Dataset
from services.core.errors import NeedsOperator
from services.lake import NAME
from services.lake.table import EMBEDDED, LakePosition, within_limit
from services.runtime.settings import LakeSettings

Offsets = Mapping[int, int]

_METADATA = "metadata"
_START = "sources/0/0"  # the offsets that the query began at
_VERSION = b"v1"  # of the files of offsets
_LAST = 3  # micro-batches: the running one, the last one that is done, the one before, which Spark reads at its start
_DAMAGED = (msgspec.MsgspecError, KeyError, ValueError)


class _Metadata(msgspec.Struct):
    id: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says about its query. `committed`: the last micro-batch that Spark has recorded as done, or -1.

    `ends`: micro-batch -> the offsets at its end, for the last micro-batches that are readable.
    `query`: the id of the query, '' if its file is lost or damaged. `damaged`: the unreadable files, as paths in the
    checkpoint.
    """

    query: str
    committed: int
    ends: Mapping[int, Offsets]
    damaged: frozenset[str] = frozenset()


class CheckpointFolder:
    """The checkpoint called `name` of a query that reads one topic. Methods raise StoreDown."""

    def __init__(self, settings: LakeSettings, name: str, topic: str) -> None:
        path = f"{settings.lake_path.rstrip('/')}/checkpoints/{name}"
        self.uri = settings.hdfs_url.rstrip("/") + path
        self._path = path
        self._topic = topic
        self._hdfs = Client(settings.hdfs_url)

    def load(self) -> Checkpoint | None:
        """Return the checkpoint, None if there is none."""
        return within_limit(self._load)

    def query(self) -> str:
        """Return the id of the query that the checkpoint belongs to."""
        return within_limit(self._query)

    def end(self, micro_batch: int) -> Offsets:
        """Return partition -> the offset at the end of `micro_batch`; for -1, the offset at which the query began."""
        return within_limit(lambda: self._offsets(f"offsets/{micro_batch}" if micro_batch >= 0 else _START))

    def delete(self) -> None:
        within_limit(lambda: self._hdfs.delete(self._path, recursive=True))

    def remove(self, names: Collection[str]) -> None:
        for name in names:
            within_limit(partial(self._hdfs.delete, f"{self._path}/{name}"))

    def _load(self) -> Checkpoint | None:
        planned, committed = self._micro_batches("offsets"), self._micro_batches("commits")
        damaged = [
            name for name in (f"commits/{micro_batch}" for micro_batch in committed[-_LAST:]) if not self._is_mark(name)
        ]
        ends = {}
        for micro_batch in planned[-_LAST:]:
            try:
                ends[micro_batch] = self._offsets(f"offsets/{micro_batch}")
            except _DAMAGED:
                damaged.append(f"offsets/{micro_batch}")
        if not committed and self._is_start_damaged():
            damaged.append(_START)
        query = ""
        try:
            query = self._query()
        except FileNotFoundError:
            if not planned and not committed:
                return None
            damaged.append(_METADATA)
        except _DAMAGED:
            damaged.append(_METADATA)
        return Checkpoint(query, max(committed, default=-1), ends, frozenset(damaged))

    def _query(self) -> str:
        return msgspec.json.decode(self._read(_METADATA), type=_Metadata).id

    def _is_start_damaged(self) -> bool:
        with suppress(FileNotFoundError):
            try:
                self._offsets(_START)
            except _DAMAGED:
                return True
        return False

    def _is_mark(self, name: str) -> bool:
        """Return whether the file marks a micro-batch as done: it has a line with a version, then a line of JSON."""
        version, _, state = self._read(name).partition(b"\n")
        try:
            msgspec.json.decode(state, type=dict[str, msgspec.Raw])
        except msgspec.MsgspecError:
            return False
        return version.startswith(b"v")

    def _micro_batches(self, folder: str) -> list[int]:
        try:
            names = [status.path.rsplit("/", 1)[-1] for status in self._hdfs.list_status(f"{self._path}/{folder}")]
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isdigit())

    def _offsets(self, name: str) -> Offsets:
        version, *_, last_line = self._read(name).rstrip().split(b"\n")
        if version.lstrip(b"\0") != _VERSION:
            raise ValueError(f"{name} is of version {version[:20]!r}")
        return msgspec.json.decode(last_line, type=dict[str, dict[int, int]])[self._topic]

    def _read(self, name: str) -> bytes:
        with self._hdfs.read(f"{self._path}/{name}") as file:
            data: bytes = file.read()
        return data


def starting_offsets(
    dataset: Dataset,
    position: LakePosition | None,
    table_is_empty: bool,
    checkpoint: Checkpoint | None,
    topic_id: str,
    bounds: Mapping[int, tuple[int, int]],
) -> Offsets:
    """Return partition -> the offset at which a query without micro-batches starts. Other partitions start at offset 0.

    `position` and `table_is_empty` are of the table. `bounds`: partition -> the first offset that the topic still has,
    and its end. Raises NeedsOperator if the start would double rows or leave rows out.
    """
    if position is None and not table_is_empty:
        raise _refused(dataset, "its table has rows that no micro-batch of this job put there")
    if position and position.topic_id not in ("", topic_id):
        raise _refused(
            dataset,
            f"the topic {dataset.topic} was deleted and created again since its table was filled",
            lost=True,
        )
    if position and position.query == EMBEDDED:
        raise _refused(dataset, "its table is filled by the embedded writer; if that is to end, stop it first")
    if position is None or position.has_no_micro_batch:
        _check_unowned(dataset, checkpoint)
    elif checkpoint is None:
        raise _refused(dataset, "its checkpoint is missing, but its table has rows")
    else:
        _check_owned(dataset, position, checkpoint)
    offsets = position.offsets if position else {}
    for partition in offsets.keys() | bounds.keys():
        offset, (first, end) = offsets.get(partition, 0), bounds.get(partition, (0, 0))
        if not first <= offset <= end:
            raise _refused(
                dataset,
                f"its table has loaded partition {partition} of {dataset.topic} up to offset {offset}, and the topic"
                f" has only {first} to {end}: messages were deleted before they were read",
                lost=True,
            )
    return offsets


def without_meaning(position: LakePosition | None, checkpoint: Checkpoint | None) -> list[str]:
    """Return the damaged files to remove before Spark starts. Called after `starting_offsets`."""
    if checkpoint is None:
        return []
    if position is None or position.has_no_micro_batch:
        return sorted(checkpoint.damaged)
    return sorted(name for name in checkpoint.damaged if _says_nothing(name, position.micro_batch))


def _says_nothing(name: str, stored: int) -> bool:
    """Return whether the damage of this file loses nothing. `stored`: the last micro-batch in the table."""
    folder, _, micro_batch = name.partition("/")
    return (folder == "offsets" and int(micro_batch) > stored) or (folder == "commits" and int(micro_batch) == stored)


def _check_unowned(dataset: Dataset, checkpoint: Checkpoint | None) -> None:
    if checkpoint and checkpoint.committed >= 0:
        raise _refused(
            dataset,
            f"its checkpoint knows of micro-batches up to {checkpoint.committed}, of which the table has none",
        )


def _check_owned(dataset: Dataset, position: LakePosition, checkpoint: Checkpoint) -> None:
    kept = sorted(name for name in checkpoint.damaged if not _says_nothing(name, position.micro_batch))
    if kept:
        raise _refused(dataset, f"its checkpoint is damaged: {', '.join(kept)} cannot be read")
    if checkpoint.query != position.query:
        raise _refused(
            dataset, f"its checkpoint is of query {checkpoint.query}, but the table was filled by {position.query}"
        )
    if position.micro_batch - checkpoint.committed not in (0, 1):
        raise _refused(
            dataset,
            f"its checkpoint is at micro-batch {checkpoint.committed}, and its table at micro-batch"
            f" {position.micro_batch}: one of the two was restored from an older state",
        )
    if checkpoint.ends.get(position.micro_batch) != position.offsets:
        raise _refused(
            dataset, f"micro-batch {position.micro_batch} ends at other offsets in its checkpoint than in its table"
        )


def _refused(dataset: Dataset, what: str, *, lost: bool = False) -> NeedsOperator:
    why = "To continue would double rows or leave rows out, so nothing was done."
    return NeedsOperator(f"{dataset.name}: {what}. {why} {ways_out(dataset, lost)}")


def ways_out(dataset: Dataset, lost: bool) -> str:
    """Return what an operator can do. `lost`: the topic no longer has all messages that the table lacks."""
    command = "logpipe stream-to-lake"
    continues = (
        f"with the messages that the topic still has (`logpipe verify --store {NAME}` names the rows that are missing,"
        f" and `logpipe replay --store {NAME}` writes them)"
        if lost
        else "from the position of the table"
    )
    return (
        f"To continue {continues}: `{command} --resume {dataset.name}`. To delete the table and read again all that the"
        f" topic still has: `{command} --rebuild {dataset.name} --yes`."
    )
