"""Control arm of HDFS: one file, written by hdfs-native, which is also the client inside delta-rs."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from hdfs_native import Client

from services.bench.target.urls import Target
from services.lake.table import within_limit
from services.runtime.settings import LakeSettings

PREFIX = "bench-control-"
"""The names of the folders in that of the lake begin with it."""

_BLOCK = 1 << 20
_BLOCKS = 128
_SECONDS = 300.0


def put(target: Target) -> Mapping[str, float]:
    block = os.urandom(_BLOCK)
    with folder(target) as (client, path):
        seconds = within_limit(partial(_write, client, f"{path}/file", block, _BLOCKS), _SECONDS)
    return {"MB/s": _BLOCKS * _BLOCK / seconds / 1e6}


@contextmanager
def folder(target: Target) -> Iterator[tuple[Client, str]]:
    """Make a folder in that of the lake, and delete it afterwards. Raises NeedsOperator, StoreDown."""
    settings = lake(target)
    path = f"{settings.lake_path.rstrip('/')}/{PREFIX}{secrets.token_hex(4)}"
    client: Client = within_limit(partial(Client, settings.hdfs_url))
    within_limit(partial(client.mkdirs, path, 0o777, create_parent=True))  # Spark may be another user
    try:
        yield client, path
    finally:
        within_limit(partial(client.delete, path, recursive=True))


def write(client: Client, path: str, content: bytes) -> None:
    """Write a file. Raises StoreDown."""
    within_limit(partial(_write, client, path, content, 1), _SECONDS)


def lake(target: Target) -> LakeSettings:
    """Raises NeedsOperator if the target does not know its HDFS."""
    return LakeSettings().model_copy(update={"hdfs_url": target.url("LOGPIPE_HDFS_URL")})


def _write(client: Client, path: str, block: bytes, blocks: int) -> float:
    """Return the seconds until the NameNode has closed the file."""
    start = time.perf_counter()
    with client.create(path) as file:
        for _ in range(blocks):
            file.write(block)
    return time.perf_counter() - start
