"""The passwords of the stack's servers. They are random, created at their first use, and kept in private files."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

FOLDER = "passwords"
"""The name of the folder with the passwords, in the stack's folder."""

POSTGRES_ROLE = "logpipe"
REDIS_WATCHER = "metrics"
"""The user of Redis that may read the server's figures and nothing else. It has the same password."""

_PASSFILE_PREFIX = f"127.0.0.1:*:*:{POSTGRES_ROLE}:"


def postgres(stack: Path) -> str:
    """Return the password of the role that all processes use."""
    return _kept(postgres_file(stack), lambda password: f"{_PASSFILE_PREFIX}{password}").removeprefix(_PASSFILE_PREFIX)


def postgres_parameter(stack: Path) -> str:
    """Return the URL parameter by which libpq finds the password, so that no command line or variable contains it."""
    return f"passfile={quote(str(postgres_file(stack)))}"


def redis(stack: Path) -> str:
    return _kept(stack / FOLDER / "redis", str)


def hdfs(stack: Path) -> str:
    """Return the secret that signs the cookie for the web pages of HDFS."""
    return _kept(hdfs_file(stack), str)


def hdfs_file(stack: Path) -> Path:
    return stack / FOLDER / "hdfs"


def postgres_file(stack: Path) -> Path:
    """The file has the format of libpq's password file."""
    return stack / FOLDER / "postgres"


def _kept(file: Path, line: Callable[[str], str]) -> str:
    """Return the content of `file`. If there is no file, it is created with the `line` of a new password.

    Of several processes at once, the first one creates the file, and the others read it.
    """
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{secrets.token_hex(6)}")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(line(secrets.token_urlsafe(32)))
        with suppress(FileExistsError):
            os.link(part, file)
        part.unlink()
    return file.read_text().strip()
