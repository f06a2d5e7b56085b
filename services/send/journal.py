"""What of a file was acked, kept on disk, so that --resume sends the rest and nothing twice.

A run's chunks end in the journal before they are sent. After an interruption the chunks that were under way are
cut at the same lines again, get the same Idempotency-Keys, and ingest stores what it has not stored yet.

The journal counts rows of one ledger and names it: another ledger does not have what was acked.
"""

import fcntl
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import msgspec
import xxhash

from services.core.errors import NeedsOperator, OtherLedger
from services.send.source import Mark
from services.send.years import Stretch

_VERSION = 2
ANEW = "run without --resume to send the whole file"


class Options(msgspec.Struct, frozen=True):
    """All that a row depends on beside its line; a resumed run has those of the first one."""

    format: str
    pattern: str
    time_format: str
    service: str
    host: str
    level: str
    timezone: str
    year: int | None
    request_rows: int


class Begun(msgspec.Struct):
    """A chunk that was sent, and whether it was acked; the chunk begins where the one before ends."""

    end: Mark
    acked: bool = False


class Progress(msgspec.Struct):
    """`done`: everything before it is acked or rejected; `begun`: the chunks after it, in order.

    `ledger`: the id of the ledger that the rows went to, '' while it is not known. `started`: when the run began, by
    this machine's clock. `years`: of a format whose times have no year. The release before this one wrote version 1,
    which has none of the three.
    """

    path: str
    run: str
    options: Options
    done: Mark = Mark()
    begun: list[Begun] = []
    version: int = 1
    ledger: str = ""
    started: datetime | None = None
    years: list[Stretch] = []


class Journal:
    """The journal of one file, locked while it is open. `progress` is None until `start` or `load`."""

    progress: Progress | None = None

    def __init__(self, folder: Path, path: str) -> None:
        """Raises NeedsOperator when another send of the same file runs, or the folder cannot be written."""
        full = os.path.realpath(path)
        self.file = folder / f"{Path(full).name}-{xxhash.xxh3_64_hexdigest(full.encode())}.progress"
        self._path = full
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock: BinaryIO = self.file.with_suffix(".lock").open("wb")
        except OSError as error:
            raise NeedsOperator(f"cannot keep the progress in {folder} (LOGPIPE_SEND_STATE): {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise NeedsOperator(f"another `logpipe send` of {path} is running") from error

    def was_interrupted(self) -> bool:
        """Whether the last run left chunks of which nobody knows whether they were stored."""
        with suppress(NeedsOperator):
            return bool(self._read().begun)
        return False

    def load(self) -> Progress:
        """The last run, to go on with. Raises NeedsOperator when the journal does not tell it for certain."""
        self.progress = self._read()
        return self.progress

    def start(self, options: Options, years: list[Stretch]) -> Progress:
        """A new run of the file."""
        self.progress = Progress(
            self._path, uuid4().hex, options, version=_VERSION, started=datetime.now(UTC), years=years
        )
        self._write()
        return self.progress

    def bind(self, ledger: str) -> None:
        """The run belongs to this ledger, '' when ingest is of a release that does not tell it.

        Raises OtherLedger when the run belongs to another one.
        """
        assert self.progress
        if self.progress.ledger == ledger:
            return
        if self.progress.ledger and not ledger:
            raise OtherLedger("the ingest API is of a release that does not name its ledger: update it, then resume")
        if self.progress.ledger:
            raise OtherLedger(
                f"what was sent up to line {self.progress.done.lines} is in another ledger: the pipeline was wiped"
                f" since, or LOGPIPE_INGEST_URL is of another one; {ANEW}"
            )
        self.progress.ledger, self.progress.version = ledger, _VERSION
        self._write()

    def begin(self, end: Mark) -> bool:
        """A chunk is about to be sent; False: it was acked in an earlier run, leave it out."""
        assert self.progress
        for begun in self.progress.begun:
            if begun.end == end:
                return not begun.acked
        self.progress.begun.append(Begun(end))
        self._write()
        return True

    def acked(self, end: Mark) -> None:
        assert self.progress
        begun = self.progress.begun
        next(b for b in begun if b.end == end).acked = True
        while begun and begun[0].acked:
            self.progress.done = begun.pop(0).end
        self._write()

    def close(self) -> None:
        self._lock.close()

    def _read(self) -> Progress:
        try:
            progress = msgspec.json.decode(self.file.read_bytes(), type=Progress)
        except FileNotFoundError as error:
            raise NeedsOperator(f"there is no record of an earlier send of this file: {ANEW}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise NeedsOperator(f"the record of the earlier send is damaged ({self.file}: {error}): {ANEW}") from error
        if progress.version > _VERSION:
            raise NeedsOperator(
                f"a newer release wrote the record of the earlier send ({self.file}): update logpipe, or {ANEW}"
            )
        if progress.path != self._path:
            raise NeedsOperator(f"{self.file} is the record of another file, {progress.path}: {ANEW}")
        return progress

    def _write(self) -> None:
        """On disk when it returns, the old record or the new one: a rename alone may leave an empty file behind."""
        assert self.progress
        draft = self.file.with_suffix(".draft")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(self.progress))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.file)
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
