"""Fixtures with real components, which are started once a session on free ports, and the option --no-skips."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from services.core.errors import StoreDown
from services.local import unprivileged
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.migrate.service import migrate
from services.postgres.connection import connect, in_database
from tests.processes import free_port
from tests.skips import fail_if_skipped, needs_package
from tests.waiting import until

settings.register_profile("pipeline", deadline=None)  # a busy machine makes no test fail
settings.load_profile("pipeline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail skipped tests, unless they need a privilege (CI)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("no_skips"):
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("no_skips"):
        fail_if_skipped(report)
    return report


def pytest_configure() -> None:
    """Handle SIGTERM as Ctrl-C: pytest stops what the fixtures started. A CI ends a run that takes too long by SIGTERM.

    A shell that starts pytest in the background has it ignore SIGINT, and with it the processes that tests interrupt.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Heavy tests come first, because one worker runs them all."""
    items.sort(key=lambda item: item.get_closest_marker("heavy") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return FilesPerWorker(config, log)


class FilesPerWorker(LoadScopeScheduling):  # type: ignore[misc]
    """One worker runs all tests of a file, and one worker runs all files with heavy tests.

    Two Sparks at once overload a small machine, so that processes are not ready in time.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "heavy" if _has_heavy_tests(self.config.rootpath / file) else file


@cache
def _has_heavy_tests(file: Path) -> bool:
    return "pytest.mark.heavy" in file.read_text()


@contextmanager
def short_folder() -> Iterator[Path]:
    """Make a folder for Unix sockets, whose paths must stay below 100 characters: tmp_path of pytest is too long."""
    folder = Path(tempfile.mkdtemp(prefix="logpipe-"))
    folder.chmod(0o755)  # in a closed folder, PostgreSQL's data would lie outside, and would be left behind
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(*names: str) -> Iterator[Stack]:
    """A stack of these programs. PostgreSQL has all tables, as after `logpipe migrate`."""
    with short_folder() as folder, Stack(LocalSettings.on_free_ports(folder), names) as stack:
        if "postgres" in names:
            migrate(stack.settings.urls()["LOGPIPE_POSTGRES_URL"])
        yield stack


@pytest.fixture
def stack_folder() -> Iterator[Path]:
    """The folder of a stack that one test runs for itself. The folder does not exist yet."""
    with short_folder() as folder:
        yield folder / "stack"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with running("postgres") as stack:
        yield stack.settings.urls()["LOGPIPE_POSTGRES_URL"]


@pytest.fixture
def own_postgres_url(empty_postgres_url: str) -> str:
    """A database for one test, with all tables. Batch ids begin at 1."""
    migrate(empty_postgres_url)
    return empty_postgres_url


@pytest.fixture
def empty_postgres_url(postgres_url: str) -> Iterator[str]:
    """A database for one test, without any table."""
    name = f"own_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield in_database(postgres_url, name)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        # WITH (FORCE) is refused while an autovacuum worker, which belongs to the superuser, uses the database.
        mine = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND usename = current_user"
        connection.execute(mine, (name,))
        connection.execute(f"DROP DATABASE {name}")


def _servers_with_pg_trgm() -> list[Path]:
    """Return the folder of programs of each PostgreSQL of Debian that has the extension."""
    found = Path("/usr/lib/postgresql").glob("*/lib/pg_trgm.so")
    return [path.parents[1] / "bin" for path in found if (path.parents[1] / "bin" / "initdb").exists()]


def _accepts_sessions(url: str) -> bool:
    try:
        connect(url).close()
    except StoreDown:
        return False
    return True


@pytest.fixture
def debian_postgres_url(stack_folder: Path) -> Iterator[str]:
    """Debian's PostgreSQL, with all tables; the user of the URL is its superuser. It has pg_trgm, and comes with psql.

    The PostgreSQL of the wheel has neither.
    """
    servers = _servers_with_pg_trgm()
    if not servers:
        needs_package("postgresql")
    programs, who, port = servers[-1], unprivileged.identity(), free_port()
    stack_folder.mkdir(mode=0o755)
    data = stack_folder / "data"
    data.mkdir(mode=0o700)
    if who:
        os.chown(data, who["user"], who["group"])
    initdb = (
        str(programs / "initdb"),
        "-D",
        str(data),
        *["-U", "logpipe", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
    )
    subprocess.run(initdb, check=True, capture_output=True, cwd=data, **who)
    options = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", "fsync": "off"}
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    url = f"postgresql://logpipe@127.0.0.1:{port}/postgres"
    with subprocess.Popen(
        [programs / "postgres", "-D", data, *words], cwd=data, stderr=subprocess.DEVNULL, **who
    ) as server:
        try:
            until(lambda: _accepts_sessions(url))
            migrate(url)
            yield url
        finally:
            server.send_signal(signal.SIGINT)


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
