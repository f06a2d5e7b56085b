"""The description of a program of the stack, and helpers for the files that it needs."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx

from services.runtime.health import Check


@dataclass(frozen=True, slots=True)
class Program:
    """`folder` contains the program's data and is its working directory.

    `address` is for clients. `ports`: name of the setting -> port on 127.0.0.1. `prepare` is called before each start,
    to make the data folder ready; it blocks and is idempotent. `ready` is the health check after the start.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    address: str
    ports: Mapping[str, int]
    ready: Check
    prepare: Callable[[], None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: Literal["TERM", "INT"] = "TERM"


@contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """Create a data folder completely or not at all, so that a start that is killed leaves no incomplete folder.

    The context yields a path beside `folder` where nothing exists. The block makes a folder there, which is renamed
    to `folder` when the block ends without an error.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    yield part
    part.rename(folder)


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        os.fchmod(opened.fileno(), 0o600)  # a file that a former release left may have another mode
        opened.write(text)


def http_ready(url: str) -> Check:
    """Return a check that `url` answers 200."""

    def check() -> str | None:
        try:
            reply = httpx.get(url, timeout=2, trust_env=False)
        except httpx.HTTPError as error:
            return f"{url}: {error or type(error).__name__}"
        return None if reply.status_code == 200 else f"{url}: {reply.status_code} {reply.text[:200]}"

    return check
