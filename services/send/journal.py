"""What of a file was acked, kept on disk, so that --resume sends the rest and nothing twice.

A run's chunks end in the journal before they are sent. After an interruption the chunks that were under way are
cut at the same lines again, get the same Idempotency-Keys, and ingest stores what it has not stored yet.
"""

import fcntl
import os
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import msgspec
import xxhash

from services.core.errors import NeedsOperator
from services.send.source import Mark


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
    """`done`: everything before it is acked or rejected; `begun`: the chunks after it, in order."""

    path: str
    run: str
    options: Options
    done: Mark = Mark()
    begun: list[Begun] = []


class Journal:
    """The journal of one file, locked while it is open. `progress` is None until `start`."""

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
        self.progress = self._read()

    def start(self, options: Options) -> Progress:
        """A new run of the file."""
        self.progress = Progress(self._path, uuid4().hex, options)
        self._write()
        return self.progress

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

    def _read(self) -> Progress | None:
        try:
            return msgspec.json.decode(self.file.read_bytes(), type=Progress)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise NeedsOperator(f"{self.file} is damaged ({error}); remove it to send the file anew") from error

    def _write(self) -> None:
        assert self.progress
        draft = self.file.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(self.progress))
        draft.replace(self.file)
