"""Real components for the tests that name one of these fixtures: each is started once a session, on free ports."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.local.settings import LocalSettings
from services.local.stack import Stack


@contextmanager
def running(*names: str) -> Iterator[Stack]:
    """In a folder of its own with a short path: a Unix socket's must stay below 100 characters."""
    folder = Path(tempfile.mkdtemp(prefix="logpipe-"))
    try:
        with Stack(LocalSettings.on_free_ports(folder), names) as stack:
            yield stack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with running("postgres") as stack:
        yield stack.settings.urls()["LOGPIPE_POSTGRES_URL"]


@pytest.fixture(scope="session")
def kafka_url() -> Iterator[str]:
    with running("kafka") as stack:
        yield stack.settings.urls()["LOGPIPE_KAFKA_URL"]


@pytest.fixture(scope="session")
def clickhouse_url() -> Iterator[str]:
    with running("clickhouse") as stack:
        yield stack.settings.urls()["LOGPIPE_CLICKHOUSE_URL"]


@pytest.fixture(scope="session")
def hdfs_url() -> Iterator[str]:
    with running("namenode", "datanode") as stack:
        yield stack.settings.urls()["LOGPIPE_HDFS_URL"]
