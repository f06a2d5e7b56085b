"""What of a file was acked, kept on disk, so that --resume sends the rest and nothing twice.

A run's chunks end in the journal before they are sent. After an interruption the chunks that were under way are
cut at the same lines again, get the same Idempotency-Keys, and ingest stores what it has not stored yet.

The journal counts rows of one ledger and names it: another ledger does not have what was acked. A ledger that was
restored from a backup has a part of it: the run begins again with the same keys, and ingest leaves out that part.

A log that was rotated has another name, and its old name is that of a new file. The record of a file that was renamed
or compressed is known by the text that it was sent of, and goes with that text; the new file begins a record of its own
with the same options.
"""

import fcntl
import os
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import msgspec
import xxhash

from services.core.errors import NeedsOperator, OtherLedger
from services.send.parse import LOGS
from services.send.source import Mark, another_file
from services.send.years import Stretch

_VERSION, _NAMES_LEDGER = 3, 2
_KEYS_LAST = timedelta(hours=24)  # at least: ingest remembers keys for longer
START_OVER = "run without --resume to send the whole file"


class Options(msgspec.Struct, frozen=True):
    """All that a row depends on beside its line; a resumed run has those of the first one.

    `origin`: the service of lines for want of any other; '' in records of older releases: the file's name says it.
    """

    format: str
    pattern: str
    time_format: str
    service: str
    host: str
    level: str
    timezone: str
    year: int | None
    request_rows: int
    origin: str = ""
    dataset: str = LOGS


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
    seams: list[Mark] | None = None

    def sent(self) -> Mark:
        """Return the offset up to which the file was sent, acked or not."""
        return self.begun[-1].end if self.begun else self.done

    def cuts(self) -> list[Mark]:
        """Return where the chunks that are sent from `done` on have to end, as they did in earlier runs."""
        ends = {mark.bytes: mark for mark in (*(self.seams or ()), *(begun.end for begun in self.begun))}
        return [ends[size] for size in sorted(ends) if size > self.done.bytes]


Agreeing = Callable[[Sequence[Mark]], Mark | None]
"""Returns the last of the marks (in the order of their bytes) before which the file still has the same text."""


class Journal:
    """The journal of one file, locked while it is open. `progress` is None until `start` or `load`.

    `former_path`: the file's path before it was rotated, when `load` took the record of that path; else ''.
    """

    progress: Progress | None = None
    former_path = ""

    def __init__(self, folder: Path, path: str) -> None:
        """Lock the journal. Raises NeedsOperator if another send of the file runs, or the folder cannot be written."""
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
        """Return whether the last run left chunks of which it is unknown whether they were stored."""
        with suppress(NeedsOperator):
            return bool(self._read().begun)
        return False

    def load(self, agreeing: Agreeing) -> Progress:
        """Return the last run, to continue it. Raises NeedsOperator if the journal is missing or damaged."""
        own = self._read() if self.file.exists() else None
        marks = [mark for mark in (own.done, own.sent()) if mark.bytes] if own else []
        if agreeing(marks) is None:
            others = sorted(self._records_of_kin(), key=lambda other: other[1].sent().bytes)
            text = agreeing([progress.sent() for _, progress in others])
            for file, progress in others:
                if progress.sent() == text:
                    return self._note_seam(self._take_over(file))
            if marks:
                raise NeedsOperator(another_file(marks[0].lines))
        self.progress = own or self._read()
        return self._note_seam(self.progress)

    def _note_seam(self, progress: Progress) -> Progress:
        """Record where the run goes on. It is on disk before any chunk is sent, because `begin` writes the record."""
        if progress.seams is not None and progress.sent().bytes and progress.sent() not in progress.seams:
            progress.seams.append(progress.sent())
        return progress

    def _records_of_kin(self) -> list[tuple[Path, Progress]]:
        """Return the records of files whose names are as if one were the other after a rotation."""
        found = []
        for file in self.file.parent.glob("*.progress"):
            with suppress(msgspec.MsgspecError, UnicodeDecodeError, OSError):
                progress = msgspec.json.decode(file.read_bytes(), type=Progress)
                is_kin = _stem(progress.path) == _stem(self._path)
                if file != self.file and is_kin and progress.version <= _VERSION and progress.sent().bytes:
                    found.append((file, progress))
        return found

    def _take_over(self, file: Path) -> Progress:
        """Move the record of this text from another path to this one, and begin a new record for the other path."""
        with file.with_suffix(".lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise NeedsOperator(f"another `logpipe send` uses the record of this file ({file})") from error
            progress = msgspec.json.decode(file.read_bytes(), type=Progress)
            self.former_path, progress.path = progress.path, self._path
            if not progress.options.origin:
                origin = Path(self.former_path).name.partition(".")[0]
                progress.options = msgspec.structs.replace(progress.options, origin=origin)
            self.progress = progress
            self._write()
            # The file at the former path continues later: its times may be of another year.
            following = _begun(self.former_path, msgspec.structs.replace(progress.options, year=None), [])
            following.ledger = progress.ledger
            _replace(file, following)
        return progress

    def start(self, options: Options, years: list[Stretch]) -> Progress:
        """Begin a new run of the file."""
        self.progress = _begun(self._path, options, years)
        self._write()
        return self.progress

    def bind(self, ledger: str, former: Collection[str] = ()) -> bool:
        """Record the ledger of the run, '' if ingest is of a release that does not name its ledger.

        `former`: the ids that the ledger had before it was restored from backups. Return True if the run belongs to one
        of them: it then begins again at the first line, and ingest knows by the keys which chunks the backup has.
        Raises OtherLedger when the run belongs to another ledger, or is so old that ingest may have forgotten keys.
        """
        assert self.progress
        if self.progress.ledger == ledger:
            return False
        if self.progress.ledger and not ledger:
            raise OtherLedger("the ingest API is of a release that does not name its ledger: update it, then resume")
        is_restored = self.progress.ledger in former
        if self.progress.ledger and not is_restored:
            raise OtherLedger(
                f"what was sent up to line {self.progress.done.lines} is in another ledger: the pipeline was wiped"
                f" since, or LOGPIPE_INGEST_URL is of another one; {START_OVER}"
            )
        if is_restored:
            self._rewind()
        self.progress.ledger, self.progress.version = ledger, max(self.progress.version, _NAMES_LEDGER)
        self._write()
        return is_restored

    def _rewind(self) -> None:
        """Begin the run again, with the same keys. Raises OtherLedger if the keys may not tell what was stored."""
        assert self.progress
        started = self.progress.started
        if self.progress.seams is None or started is None or datetime.now(UTC) - started > _KEYS_LAST:
            raise OtherLedger(
                "the ledger was restored from a backup, and this run began more than"
                f" {_KEYS_LAST // timedelta(hours=1)} hours ago, or with a release before this one: ingest cannot tell"
                " any more which of its rows the backup has. Look into the store for the last row that it has, and send"
                " the lines after it as a file of their own"
            )
        self.progress.done, self.progress.begun = Mark(), []

    def begin(self, end: Mark) -> bool:
        """Record that a chunk is about to be sent. Return False if an earlier run had it acked: leave it out then."""
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
            raise NeedsOperator(f"there is no record of an earlier send of this file: {START_OVER}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise NeedsOperator(
                f"the record of the earlier send is damaged ({self.file}: {error}): {START_OVER}"
            ) from error
        if progress.version > _VERSION:
            raise NeedsOperator(
                f"a newer release wrote the record of the earlier send ({self.file}): update logpipe, or {START_OVER}"
            )
        if progress.path != self._path:
            raise NeedsOperator(f"{self.file} is the record of another file, {progress.path}: {START_OVER}")
        return progress

    def _write(self) -> None:
        assert self.progress
        _replace(self.file, self.progress)


def _begun(path: str, options: Options, years: list[Stretch]) -> Progress:
    return Progress(path, uuid4().hex, options, version=_VERSION, started=datetime.now(UTC), years=years, seams=[])


def _stem(path: str) -> str:
    """Return what rotation leaves of a name: "app" of app.log, app.log.1.gz, app-20240501.log and app.log-20240501."""
    return re.split(r"\.|[-_]?\d", Path(path).name, maxsplit=1)[0]


def _replace(target: Path, progress: Progress) -> None:
    """On disk when it returns, the old record or the new one: a rename alone may leave an empty file behind."""
    draft = target.with_suffix(".draft")
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(progress))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
