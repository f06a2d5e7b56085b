"""The passwords of the stack's servers: random, made at their first use, in files that only their owner reads."""

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
    """The password of the role that all processes use."""
    return _kept(postgres_file(stack), lambda password: f"{_PASSFILE_PREFIX}{password}").removeprefix(_PASSFILE_PREFIX)


def postgres_parameter(stack: Path) -> str:
    """The parameter of a URL by which libpq finds the password: no command line and no environment holds it."""
    return f"passfile={quote(str(postgres_file(stack)))}"


def redis(stack: Path) -> str:
    return _kept(stack / FOLDER / "redis", str)


def hdfs(stack: Path) -> str:
    """The secret that signs the cookie for the web pages of HDFS."""
    return _kept(hdfs_file(stack), str)


def hdfs_file(stack: Path) -> Path:
    return stack / FOLDER / "hdfs"


def postgres_file(stack: Path) -> Path:
    """In the format of libpq's password file."""
    return stack / FOLDER / "postgres"


def _kept(file: Path, line: Callable[[str], str]) -> str:
    """The content of `file`, which is made of a new password if there is none. Whoever makes the file first wins."""
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{secrets.token_hex(6)}")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(line(secrets.token_urlsafe(32)))
        with suppress(FileExistsError):
            os.link(part, file)
        part.unlink()
    return file.read_text().strip()
