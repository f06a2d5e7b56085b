"""The unprivileged user that servers of the stack run as when root starts the stack, and the place of their data.

PostgreSQL and the ClickHouse engine run the statements of their clients, so they must reach their own data only. If
root starts them (in a container, in a CI), they run as `nobody`, an account that every Unix has. This user must have
access to the data by the modes of the folders. If a parent folder is closed to other users, such as a home folder of
mode 700, the data is kept below /var/lib/logpipe. No mode of a folder is changed.
"""

import errno
import os
import pwd
import resource
import secrets
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from services.core.errors import NeedsOperator

OUTSIDE = Path("/var/lib/logpipe")
_USER = "nobody"
_NORMAL_NICE = 20  # 20 minus the nice value 0, as RLIMIT_NICE counts


class Identity(TypedDict, total=False):
    """The arguments of `subprocess.run` that decide which user a program runs as."""

    user: int
    group: int
    extra_groups: list[int]


def identity() -> Identity:
    """Return the user that runs the servers: `nobody` if this process belongs to root, else its own user."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(_USER)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def become() -> None:
    """Change the user of this process to that of `identity`.

    Its threads may return from a lower priority to the normal one, if the kernel allows it (see `may_lower_priority`).
    """
    if who := identity():
        with suppress(ValueError):  # root of a container may not be allowed to
            resource.setrlimit(resource.RLIMIT_NICE, (_NORMAL_NICE, _NORMAL_NICE))
        os.setgroups(who["extra_groups"])
        os.setgid(who["group"])
        os.setuid(who["user"])  # the kernel drops all capabilities together with root's user id


def may_lower_priority() -> bool:
    """Return whether a thread of this process that lowers its priority may raise it again."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_lower_and_raise).result()


def _lower_and_raise() -> bool:
    own = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, own)
    os.setpriority(os.PRIO_PROCESS, own, before + 1)
    try:
        os.setpriority(os.PRIO_PROCESS, own, before)
    except PermissionError:
        return False
    return True


def is_closed(place: Path) -> bool:
    """Return whether a folder above `place` is closed to users other than its owner and group."""
    return any(not parent.stat().st_mode & 0o001 for parent in place.parents)


def make_open(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # independent of the umask


def data_folder(folder: Path) -> Path:
    """Return the data folder of the server that belongs to `folder`. It exists after the first start only."""
    link = _link(folder)
    return link.readlink() / "data" if link.is_symlink() else folder / "data"


def prepare_data(folder: Path) -> Path:
    """Put the data of a server where the user of `identity` can reach it, and return the data folder.

    A data folder inside a closed folder is moved. A data folder of another owner changes its owner. If the process is
    killed meanwhile, the next call completes the work.
    """
    if os.geteuid() == 0 and is_closed(folder / "data") and not _link(folder).is_symlink():
        # The name is random, not derived from the path: a stack folder that was deleted and created again must not find
        # the data of the former one.
        _link(folder).symlink_to(OUTSIDE / f"stack-{secrets.token_hex(6)}")
    data = data_folder(folder)
    if _link(folder).is_symlink():
        make_open(OUTSIDE)
        make_open(data.parent)
        _move(folder / "data", data)
    if data.exists():
        hand_over(data)
    return data


def hand_over(data: Path) -> None:
    """Change the owner to the user of `identity`. The folder itself comes last, and marks that the work is done."""
    who = identity()
    if who and data.stat().st_uid != who["user"]:
        for path in (*data.rglob("*"), data):
            os.chown(path, who["user"], who["group"], follow_symlinks=False)


def delete_outside(folder: Path) -> None:
    """Delete the data that lies outside `folder`, if there is any."""
    if _link(folder).is_symlink():
        shutil.rmtree(_link(folder).readlink(), ignore_errors=True)


def _link(folder: Path) -> Path:
    """Return the symbolic link to the folder outside. The link does not exist if the data lies in `folder`."""
    return folder / "outside"


def _move(inside: Path, data: Path) -> None:
    """Move a data folder out of the stack folder. At every moment, one complete data folder exists.

    Within one file system, the folder is renamed. Otherwise the data is copied to `part`. `inside` is renamed to
    `moved` after the copy is complete, so the existence of `moved` says that the copy can be used.
    """
    part, moved = data.with_name("data.copy"), inside.with_name("data.moved")
    if inside.exists():
        if data.exists():
            raise NeedsOperator(f"there is data in {inside} and in {data}: move the folder away that is not needed")
        try:
            inside.rename(data)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(inside, part, symlinks=True)
            os.sync()
            inside.rename(moved)
    if moved.exists():
        if part.exists():
            part.rename(data)
        shutil.rmtree(moved)
