"""A Delta table of the lake, for its readers and writers: its address, its latest version, its position.

Each commit of a writer has the position up to which the table has the topic (`LakePosition`). So the table itself says
which messages it contains, also if the checkpoint of the writer is lost.
"""

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from threading import RLock, Thread  # noqa: TID251 - one call that may never end is no Worker
from typing import TypeVar

import msgspec
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError

from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.ledger import StorePosition
from services.lake import NAME
from services.lake.snapshot import Snapshot
from services.runtime.settings import LakeSettings

EMBEDDED = "embedded"
CLAIMED = "spark"
"""The `query` of a position that the embedded writer has committed, and that Spark has claimed before its first batch.
No id of a streaming query looks like these."""

_SECONDS = 30.0  # time limit of one call: the HDFS client may wait for a server for ever
_HISTORY = (1, 16, 256, 4096)
"""How many of the newest commits are read to find the last position: more only if fewer contain none.

Only commits of maintenance have no position. A run of its tasks makes at most one commit for each day, and then repeats
the position. So the number of commits that are read does not depend on the length of the log.
"""

_DECORATION = re.compile(r"\x1b\[\d*m|↳")  # delta-rs prints its errors for a terminal

Result = TypeVar("Result")


class LakePosition(msgspec.Struct, frozen=True, rename={"owner_number": "batch"}):
    """The position of a table: it has every message of the topic below `offsets`.

    Rejected rows are in the table of rejects, or, if the embedded writer rejected them, in the dead letters.

    `offsets`: partition -> the next offset.

    `query` names the owner of the table: the streaming query of Spark, or EMBEDDED. `query` is empty while no writer
    owns the table, and CLAIMED while Spark owns the table and has stored no micro-batch. The next writer then completes
    the rejects of the micro-batch whose position is `unfinished`. The writer starts at `offsets`, and at offset 0 of
    partitions that `offsets` lacks.

    `owner_number`: a number of the owner, which code reads as `micro_batch` or `ended_writes`. Commits call it `batch`.
    `start`: the offsets at which the micro-batch began; empty unless Spark has committed the position.

    `generation` is random. The first position of a table and each --rebuild set a new one, which every later position
    repeats. Positions of two generations do not count the same rows. A table that an earlier release filled has no
    generation ('') until it is rebuilt.
    """

    topic_id: str
    offsets: dict[int, int]
    start: dict[int, int] = {}
    query: str = ""
    owner_number: int = -1
    unfinished: "LakePosition | None" = None
    generation: str = ""

    @classmethod
    def first(cls, topic_id: str = "", offsets: Mapping[int, int] | None = None) -> "LakePosition":
        """Return the position of a table without rows, with a new generation."""
        return cls(topic_id, dict(offsets or {}), generation=uuid.uuid4().hex)

    @property
    def micro_batch(self) -> int:
        """The number of the micro-batch that Spark committed with this position."""
        return self.owner_number

    @property
    def ended_writes(self) -> int:
        """How often the writes of the embedded writer were ended (`end_writes`)."""
        return self.owner_number

    @property
    def has_no_micro_batch(self) -> bool:
        """Whether no writer owns the table, or Spark owns it and has stored no micro-batch."""
        return self.query in ("", CLAIMED)

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()


class Table:
    """One Delta table, as of its latest commit at each call. Thread-safe. Every method raises StoreDown.

    `memory`: bytes that a query of a snapshot may use; None for no limit.
    """

    def __init__(self, uri: str, memory: int | None = None) -> None:
        self.uri = uri
        self._memory = memory
        self._lock = RLock()
        self._table: DeltaTable | None = None
        # A version, and the last position among the commits up to it.
        self._position: tuple[int, LakePosition | None] = (-1, None)
        self._snapshot: Snapshot | None = None  # the last one that was taken

    def snapshot(self) -> Snapshot | None:
        """Return the current version, for a reader; None if there is no table."""
        return within_limit(self._take_snapshot)

    def engine(self) -> QueryBuilder | None:
        """Return an engine that knows the current version as `t`; None if there is no table."""
        return within_limit(self._engine)

    def latest(self) -> DeltaTable | None:
        """Return the current version, for a writer; None if there is no table."""
        return within_limit(self._refresh)

    def position(self) -> LakePosition | None:
        """Return the last position that a commit has; None if no commit has one."""
        return within_limit(self._find_position)

    def own_position(self) -> StorePosition:
        """Return the position with the identities that it counts in. The table id contains the generation, if any."""
        return within_limit(self._own_position)

    def current_version(self) -> tuple[DeltaTable, LakePosition | None]:
        """Return the current version and its position, for a commit on that version. The table must exist."""
        return within_limit(self._current_version)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock has a timeout, so that one stuck caller cannot block the others."""
        if not self._lock.acquire(timeout=_SECONDS):
            raise TimeoutError
        try:
            yield
        finally:
            self._lock.release()

    def _take_snapshot(self) -> Snapshot | None:
        with self._locked():
            if (table := self._refresh()) is None:
                return None
            if self._snapshot is None or self._snapshot.version != table.version():
                self._snapshot = Snapshot.of(table, self._memory)
            return self._snapshot

    def _engine(self) -> QueryBuilder | None:
        with self._locked():
            table = self._refresh()
            return QueryBuilder().register("t", table) if table else None

    def _current_version(self) -> tuple[DeltaTable, LakePosition | None]:
        with self._locked():
            position = self._find_position()
            if self._table is None:
                raise TableNotFoundError(f"there is no table at {self.uri}")
            return self._table, position

    def _own_position(self) -> StorePosition:
        with self._locked():
            position = self._find_position()
            if self._table is None or position is None:
                return StorePosition("", "", {})
            table_id = "/".join(filter(None, (str(self._table.metadata().id), position.generation)))
            return StorePosition(table_id, position.topic_id, position.offsets)

    def _find_position(self) -> LakePosition | None:
        """Return the position. The generation shows that a table was created again, which a handle does not notice."""
        with self._locked():
            known, before = self._position
            position = self._read_position()
            if known >= 0 and _generation(position) != _generation(before):
                self._table = None
                position = self._read_position()
            return position

    def _read_position(self) -> LakePosition | None:
        if (table := self._refresh()) is None:
            return None
        known, position = self._position
        if table.version() != known:
            new = table.version() - known
            searched = (last_position(table, min(limit, new)) for limit in _HISTORY)
            found = next(filter(None, searched), position)
            self._position = (table.version(), found)
        return self._position[1]

    def _refresh(self) -> DeltaTable | None:
        with self._locked():
            try:
                if self._table is None:
                    self._table = DeltaTable(self.uri)
                    self._position, self._snapshot = (-1, None), None
                else:
                    self._table.update_incremental()
            except TableNotFoundError:
                self._table = None
            except BaseException:
                self._table = None  # it may have been created again
                raise
            return self._table


def _generation(position: LakePosition | None) -> str:
    return position.generation if position else ""


def last_position(table: DeltaTable, commits: int) -> LakePosition | None:
    """Return the newest position in the last `commits` commits of `table`; None if none of them has one."""
    for commit in table.history(commits):
        try:
            return msgspec.json.decode(commit.get("userMetadata", ""), type=LakePosition)
        except msgspec.MsgspecError:
            continue
    return None


def table_uri(settings: LakeSettings, *names: str) -> str:
    return "/".join((settings.hdfs_url.rstrip("/") + settings.lake_path.rstrip("/"), *names))


def rejects_uri(settings: LakeSettings, dataset: Dataset) -> str:
    return table_uri(settings, "rejects", dataset.name)


def within_limit(work: Callable[[], Result], seconds: float | None = None) -> Result:
    """Return the result of `work`. It runs in a thread, which is abandoned after the time limit. Raises StoreDown.

    `seconds`: a time limit other than that of a call.
    """
    limit = seconds or _SECONDS
    with translated(limit):
        return started(work).result(limit)


def started(work: Callable[[], Result]) -> Future[Result]:
    """Start `work` in a thread of its own, which does not keep the process from ending. Return the future result."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the caller that waits for the result gets it
            future.set_exception(error)

    Thread(target=run, daemon=True, name="lake").start()
    return future


@contextmanager
def translated(seconds: float | None = None) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise StoreDown(NAME, f"no reply within {seconds or _SECONDS:.0f} s") from error
    except (DeltaError, pa.ArrowException, OSError) as error:
        raise StoreDown(NAME, " ".join(_DECORATION.sub(" ", str(error)).split())[:500]) from error
