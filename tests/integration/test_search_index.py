"""The index of PostgreSQL for text search: on closed days only, and only where the server has pg_trgm.

The PostgreSQL of the wheel has no pg_trgm; Debian's package has it.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.core.errors import StoreDown
from services.datasets.events import DATASET as EVENTS
from services.datasets.logs import DATASET as LOGS
from services.local import unprivileged
from services.migrate.service import migrate
from services.postgres.connection import connect
from services.stores import postgres
from services.stores.postgres import tables
from services.stores.postgres.tables import SEARCH_LOCK, midnight
from tests.processes import free_port
from tests.skips import needs_package
from tests.waiting import until

DAY = 20_778
SEARCHED = replace(LOGS, name="searched")


def _servers_with_pg_trgm() -> list[Path]:
    """Return the folder of programs of each PostgreSQL of Debian that has the extension."""
    found = Path("/usr/lib/postgresql").glob("*/lib/pg_trgm.so")
    return [path.parents[1] / "bin" for path in found if (path.parents[1] / "bin" / "initdb").exists()]


def accepts_sessions(url: str) -> bool:
    try:
        connect(url).close()
    except StoreDown:
        return False
    return True


@pytest.fixture
def url_with_pg_trgm(stack_folder: Path) -> Iterator[str]:
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
            until(lambda: accepts_sessions(url))
            migrate(url)
            yield url
        finally:
            server.send_signal(signal.SIGINT)


def test_closed_days_are_indexed_once(url_with_pg_trgm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(url_with_pg_trgm) as connection, connect(url_with_pg_trgm) as other:
        postgres.prepare(connection, SEARCHED)
        postgres.ensure_partitions(connection, SEARCHED, DAY, 4)
        other.execute("SELECT pg_advisory_lock(%s)", (SEARCH_LOCK,))
        assert postgres.index_search(connection, SEARCHED, DAY + 2) == []  # somebody else is at it
        other.execute("SELECT pg_advisory_unlock_all()")
        closed = [postgres.partition_name(SEARCHED, day) for day in (DAY, DAY + 1)]
        connection.execute(
            "INSERT INTO searched (id, created_at, timestamp, level, service)"
            " SELECT n, %s, now(), 'INFO', 'api' FROM generate_series(1, 100) AS n",
            (midnight(DAY),),
        )
        connection.execute("ANALYZE searched")
        monkeypatch.setattr(tables, "SEARCHED_ROWS", 99)
        assert postgres.index_search(connection, SEARCHED, DAY + 2) == [closed[1]]
        monkeypatch.setattr(tables, "SEARCHED_ROWS", 100)
        assert postgres.index_search(connection, SEARCHED, DAY + 2) == [closed[0]]
        assert postgres.index_search(connection, SEARCHED, DAY + 2) == []
        assert postgres.index_search(connection, EVENTS, DAY + 2) == []
        query = "SELECT tablename FROM pg_indexes WHERE indexdef LIKE '%gin_trgm_ops%' ORDER BY 1"
        assert connection.execute(query).fetchall() == [(name,) for name in closed]
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(
            "EXPLAIN SELECT count(*) FROM searched WHERE message LIKE '%%zebra%%' AND created_at < %s",
            (midnight(DAY + 1),),
        ).fetchall()
        assert any("_message_trgm" in line for (line,) in plan), plan


def test_a_server_without_pg_trgm_does_without(postgres_url: str) -> None:
    with connect(postgres_url) as connection:
        postgres.prepare(connection, SEARCHED)
        postgres.ensure_partitions(connection, SEARCHED, DAY, 1)
        assert postgres.index_search(connection, SEARCHED, DAY + 1) == []
