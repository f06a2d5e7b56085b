"""Grafana's dashboard of footprints: its SQL, by Grafana's role, returns what the page /footprints shows."""

import os
import shutil
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from services.acceptance.committer import Committer, Submission
from services.core.instants import from_datetime
from services.core.local_week import by_minute_of_day, by_weekday_and_hour, offsets
from services.core.queries import Filters, Panel, TrafficQuery
from services.core.rows import Row, RowCodec
from services.datasets.footprints import DATASET
from services.postgres.connection import connect
from services.stores.postgres import PostgresReader
from tests import panels
from tests.kubernetes.builds import KUBERNETES
from tests.skips import needs_program

ROLE = KUBERNETES / "components" / "monitoring" / "config" / "grafana-role.sql"
ZONE = "Asia/Seoul"
START = datetime(2026, 1, 30, 15, 30, tzinfo=UTC)
END = START + timedelta(days=3)
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def footprint(number: int) -> str:
    """Requests of many minutes, three endpoints of different size, and statuses of every class, absent and odd ones."""
    at = (START + timedelta(minutes=37 * number + 1)).isoformat()
    endpoint = f'"link":"/items/{number}","route":"/items/{{item}}"' if number % 3 else '"link":"/"'
    method = "POST" if number % 5 == 1 else "GET"
    status = f',"status":{code}' if (code := (100, 204, 302, 404, 503, 200, 999, None)[number % 8]) else ""
    duration = f',"duration_ms":{number * 7 % 50}.5' if number % 4 else ""
    return f'{{"method":"{method}",{endpoint},"footprint_time":"{at}"{status}{duration}}}'


@pytest.fixture
def grafana_url(debian_postgres_url: str) -> str:
    """Rows are committed, and the role of Grafana is made: twice, as for a pod that starts again."""
    committer = Committer(
        debian_postgres_url, {DATASET.name: RowCodec(DATASET)}, lambda: 0, lambda batch, outgoing: None, 1000, 4
    )
    lines = "\n".join(footprint(number) for number in range(100))
    with closing(committer):
        committer.commit(DATASET, [Submission([RowCodec(DATASET).decode_lines(lines.encode())])])
    psql = shutil.which("psql") or needs_program("psql", "Debian: postgresql-client")
    for _ in range(2):
        environment = {**os.environ, "GRAFANA_DATABASE_PASSWORD": "it's"}
        subprocess.run([psql, debian_postgres_url, f"--file={ROLE}"], check=True, env=environment)
    return debian_postgres_url.replace("logpipe@", "grafana@")


def test_every_panel_shows_what_the_page_shows(debian_postgres_url: str, grafana_url: str) -> None:
    with psycopg.connect(grafana_url) as connection:
        shown = {
            name.partition(": ")[2].split(",")[0].split(":")[0]: connection.execute(text.encode()).fetchall()
            for name, text in panels.statements(START.isoformat(), END.isoformat(), ZONE).items()
        }
    with closing(PostgresReader(debian_postgres_url)) as reader:

        def page(panel: Panel) -> list[Row]:
            period = from_datetime(START), from_datetime(END)
            query = TrafficQuery(DATASET, panel, Filters((), *period), offsets(ZoneInfo(ZONE), *period))
            return reader.execute(query, 1 << 40).rows

        week = page("week")
        assert shown == {
            "Requests in the period": page("total"),
            "Requests by class of status": page("statuses"),
            "The ten endpoints with the most requests": [(f"{m} {e}", count) for m, e, count in page("endpoints")],
            "Requests by weekday and hour": [
                (WEEKDAYS[day], *hours) for day, hours in enumerate(by_weekday_and_hour(week)) if any(hours)
            ],
            "Requests by minute of the day": [
                (minute, count) for minute, count in enumerate(by_minute_of_day(week)) if count
            ],
            "The ten slowest endpoints by p95": [(f"{m} {e}", *figures) for m, e, *figures in page("durations")],
        }
    assert len(shown["The ten endpoints with the most requests"]) == 4
    assert len(shown["Requests by class of status"]) == 7


def test_grafana_changes_nothing(grafana_url: str) -> None:
    statements: list[Any] = [
        "DELETE FROM footprints",
        "SET default_transaction_read_only = off; DELETE FROM footprints",
    ]
    for statement in statements:
        with closing(connect(grafana_url)) as connection, pytest.raises(psycopg.Error, match=r"read-only|permission"):
            connection.execute(statement)
