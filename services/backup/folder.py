"""The files of backups: a folder for each, whose name is the time at which the backup was begun.

The description is written last, so that a folder without one is what an interrupted backup left.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from services.core.errors import NeedsOperator

_DUMP, _DESCRIPTION = "postgres.dump", "backup.json"
_NAME = "%Y-%m-%dT%H-%M-%SZ"
_VERSION = 1


class Description(msgspec.Struct, frozen=True):
    """`begun_at`: by PostgreSQL's clock; rows that were accepted before are in the backup. `ledger`: its id."""

    begun_at: datetime
    ledger: str
    sha256: str
    version: int = _VERSION


class Backup:
    """One complete backup. `dump`: what pg_dump wrote."""

    def __init__(self, folder: Path) -> None:
        """Raises NeedsOperator if `folder` has no complete backup that this release can read."""
        self.dump = folder / _DUMP
        try:
            self.description = msgspec.json.decode((folder / _DESCRIPTION).read_bytes(), type=Description)
        except FileNotFoundError as error:
            raise NeedsOperator(f"{folder} has no complete backup: {_DESCRIPTION} is missing") from error
        except (msgspec.MsgspecError, OSError) as error:
            raise NeedsOperator(f"{folder / _DESCRIPTION} cannot be read: {error}") from error
        if self.description.version > _VERSION:
            raise NeedsOperator(f"{folder} was written by a newer release: restore it with that release")

    def check(self) -> None:
        """Read the whole dump. Raises NeedsOperator if the dump is not as it was written."""
        try:
            found = _sha256(self.dump)
        except OSError as error:
            raise NeedsOperator(f"{self.dump} cannot be read: {error}") from error
        if found != self.description.sha256:
            raise NeedsOperator(f"{self.dump} was changed since it was written, or is damaged: use another backup")


def find(folder: Path) -> Backup:
    """Return the backup in `folder`, or the newest of the backups in folders of it. Raises NeedsOperator."""
    if (folder / _DESCRIPTION).exists():
        return Backup(folder)
    complete = _complete(folder)
    if not complete:
        raise NeedsOperator(f"{folder} has no complete backup")
    return Backup(complete[-1])


def write(folder: Path, begun_at: datetime, ledger: str, dump: Callable[[Path], None]) -> Path:
    """Make a backup in a folder of its own in `folder`, and return that. `dump` writes the file that it is given.

    Raises NeedsOperator if the folder cannot be written; what `dump` raises leaves nothing behind.
    """
    made = folder / begun_at.astimezone(UTC).strftime(_NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made.mkdir(mode=0o700)
    except OSError as error:
        raise NeedsOperator(f"no backup can be written to {folder}: {error}") from error
    try:
        dump(made / _DUMP)
        _sync(made / _DUMP)
        description = Description(begun_at, ledger, _sha256(made / _DUMP))
        draft = made / f"{_DESCRIPTION}.part"
        draft.write_bytes(msgspec.json.encode(description))
        _sync(draft)
        draft.rename(made / _DESCRIPTION)
        for changed in (made, folder):
            _sync(changed)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return made


def keep(folder: Path, count: int) -> list[Path]:
    """Delete all but the newest `count` complete backups in `folder`, and what is left of older ones.

    Return what was deleted.
    """
    kept = _complete(folder)[-count:]
    old = [path for path in _named(folder) if path.name < kept[0].name] if len(kept) == count else []
    for path in old:
        (path / _DESCRIPTION).unlink(missing_ok=True)  # a backup that is deleted in part is not complete any more
        shutil.rmtree(path)
    return old


def _complete(folder: Path) -> list[Path]:
    return [path for path in _named(folder) if (path / _DESCRIPTION).exists()]


def _named(folder: Path) -> list[Path]:
    """Return the folders of backups, the oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(ValueError):
            datetime.strptime(path.name, _NAME).replace(tzinfo=UTC)
            found.append(path)
    return sorted(found)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
