"""`logpipe migrate`: several at once, killed in the middle, on ledgers of earlier releases, and processes that wait."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from services import datasets
from services.alerts import repository as alerts
from services.core.errors import NeedsOperator, StoreDown
from services.ledger import schema, slots
from services.ledger.identity import ledger_id
from services.ledger.watermark import Watermarks
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.migrate.main import main
from services.migrate.service import migrate
from services.postgres import migrations
from services.postgres.connection import Connection, connect
from services.postgres.pool import Pool
from tests.processes import Process, free_port
from tests.waiting import until

SCHEMAS = Path(__file__).with_name("schemas")
LEDGER_NAMES = [
    "ledger-0001-tables",
    "ledger-0002-verifications",
    "ledger-0003-former-ledgers",
    "ledger-0004-source-progress",
]
NAMES = [
    *LEDGER_NAMES,
    "alerts-0001-tables",
    "postgres-0001-rollups-and-closed-days",
    "reports-0001-windows",
    "views-0001-user-footprint",
]
MADE_AT_RUN_TIME = """
    CREATE TABLE rollup_chunks (rollup text NOT NULL, until_batch bigint NOT NULL, day date NOT NULL,
        row_count bigint NOT NULL, PRIMARY KEY (rollup, until_batch));
    CREATE TABLE closed_days (dataset text NOT NULL, day int NOT NULL, least bigint NOT NULL, greatest bigint NOT NULL,
        last_id bigint NOT NULL, PRIMARY KEY (dataset, day));
    CREATE TABLE realtime_windows (start timestamptz NOT NULL, service text NOT NULL, level text NOT NULL,
        rows bigint NOT NULL, PRIMARY KEY (start, service, level));
    INSERT INTO rollup_chunks VALUES ('logs_by_level', 7, '2026-01-02', 40);
    INSERT INTO closed_days VALUES ('logs', 20000, 1, 2, 3);
    INSERT INTO realtime_windows VALUES ('2026-01-02', 'auth', 'INFO', 5);
"""
ROWS_OF_VERSION_1 = """
    INSERT INTO batches (batch_id, slot, dataset, rows, checksum, xid, created_at, published_at, parts)
        VALUES (nextval('batch_ids'), 0, 'logs', 5, 1, pg_current_xact_id(), 1, now(), '[[0, 7]]'),
               (nextval('batch_ids'), 0, 'logs', 6, 2, pg_current_xact_id(), 2, NULL, NULL);
    INSERT INTO requests (idempotency_key, body_hash, dataset, first_batch, last_batch, rows)
        VALUES ('key', 'hash', 'logs', 1, 1, 5);
    INSERT INTO slots (slot, owner, renewed_at) VALUES (0, gen_random_uuid(), '-infinity');
    INSERT INTO slot_positions (slot, dataset, partition, next_offset) VALUES (0, 'logs', 0, 8);
    INSERT INTO sink_progress (store, dataset, topic_id, partition, next_offset, intent_first, intent_last)
        VALUES ('clickhouse', 'logs', 'topic', 0, 3, 3, 7), ('clickhouse', 'logs', 'topic', 1, 0, NULL, NULL);
    INSERT INTO floors VALUES ('logs', 1);
    INSERT INTO alert_positions VALUES (0, 'alerts', 4, 100);
    INSERT INTO alert_counts VALUES ('auth', 99, 3, 'sample');
    INSERT INTO alerts (rule, service, threshold, window_seconds, opened_at, count, peak, sample)
        VALUES ('rule', 'auth', 1, 60, now(), 3, 3, 'sample');
    INSERT INTO alert_posts (alert_id, event) VALUES (1, 'opened');
"""
TABLES = (
    *("batches", "requests", "slots", "slot_positions", "sink_progress", "floors"),
    *("alert_positions", "alert_counts", "alerts", "alert_posts"),
)


@pytest.fixture
def connection(empty_postgres_url: str) -> Iterator[Connection]:
    with closing(connect(empty_postgres_url)) as opened:
        yield opened


def command(url: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "services", "migrate"],
        env={"LOGPIPE_POSTGRES_URL": url, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def structure(connection: Connection) -> list[tuple[Any, ...]]:
    """Every column, index and option of the tables, without the tables that yoyo keeps."""
    columns = connection.execute(
        "SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull,"
        " pg_get_expr(adbin, adrelid), reloptions FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
        " LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND attnum > 0 AND relname NOT LIKE '\\_yoyo%'"
        " AND relname <> 'applied_migrations'"
    )
    indexes = connection.execute(
        "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename NOT LIKE '\\_yoyo%'"
        " AND tablename <> 'applied_migrations'"
    )
    constraints = connection.execute(
        "SELECT relname, contype, pg_get_constraintdef(pg_constraint.oid) FROM pg_constraint"
        " JOIN pg_class ON pg_class.oid = conrelid WHERE connamespace = 'public'::regnamespace AND contype <> 'n'"
        " AND relname NOT LIKE '\\_yoyo%' AND relname <> 'applied_migrations'"
    )
    return sorted([*map(tuple, columns), *map(tuple, indexes), *map(tuple, constraints)], key=str)


def contents(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """The rows of all tables that `ROWS_OF_VERSION_1` fills."""
    return {
        table: [row for (row,) in connection.execute(f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY 1")]
        for table in TABLES
    }


def test_a_new_database_gets_all_tables_and_a_second_run_changes_nothing(
    connection: Connection, empty_postgres_url: str
) -> None:
    with pytest.raises(StoreDown, match="logpipe migrate"):
        schema.require(connection)
    assert migrate(empty_postgres_url) == NAMES
    schema.require(connection)
    alerts.require(connection)
    before = structure(connection), ledger_id(connection)
    assert migrate(empty_postgres_url) == []
    assert (structure(connection), ledger_id(connection)) == before
    tables = {name for (name,) in connection.execute("SELECT relname FROM pg_class WHERE relkind = 'p'")}
    assert tables == {dataset.name for dataset in datasets.all_datasets()}


def test_two_at_once(empty_postgres_url: str, connection: Connection) -> None:
    outputs = [ended(process) for process in [command(empty_postgres_url) for _ in range(3)]]
    assert sorted("applied" in output for output in outputs) == [False, False, True]
    schema.require(connection)
    alerts.require(connection)


@pytest.mark.parametrize("table", ["batches", "alerts"])
def test_killed_in_the_middle_the_next_one_goes_on(empty_postgres_url: str, connection: Connection, table: str) -> None:
    """A reader of `table` stops it in its first migration, or in that of the alerts."""
    connection.execute((SCHEMAS / "ledger_version_1.sql").read_bytes())
    with psycopg.connect(empty_postgres_url) as reader:
        reader.execute(f"SELECT FROM {table}")
        if table == "alerts":  # which a reader does not stop: the index is missing, and only writers are waited for
            reader.execute("LOCK alerts IN ROW EXCLUSIVE MODE")
        with command(empty_postgres_url) as first:
            until(lambda: waits_for(connection, table))
            first.kill()
        before = LEDGER_NAMES if table == "alerts" else []
        assert migrations._applied(connection) == set(before)
        until(lambda: not waits_for(connection, table))
    assert migrate(empty_postgres_url) == NAMES[len(before) :]


def test_a_table_in_use_is_waited_for_a_moment_at_a_time(empty_postgres_url: str, connection: Connection) -> None:
    connection.execute((SCHEMAS / "ledger_version_1.sql").read_bytes())
    with psycopg.connect(empty_postgres_url) as reader:
        reader.execute("SELECT FROM batches")
        with command(empty_postgres_url) as migration:
            until(lambda: waits_for(connection, "batches"))
            until(lambda: not waits_for(connection, "batches"))  # so that writers go on
            reader.commit()
            assert "migration ledger-0001-tables applied" in ended(migration)


def waits_for(connection: Connection, table: str) -> bool:
    waiting = "SELECT FROM pg_locks WHERE relation = to_regclass(%s) AND NOT granted"
    return connection.execute(waiting, (table,)).fetchone() is not None


@pytest.mark.parametrize("version", [1, 7])
def test_a_ledger_of_an_earlier_release_is_taken_over(
    empty_postgres_url: str, connection: Connection, postgres_url: str, version: int
) -> None:
    connection.execute((SCHEMAS / f"ledger_version_{version}.sql").read_bytes())
    connection.execute(ROWS_OF_VERSION_1.encode())
    if version == 7:
        connection.execute("UPDATE sink_progress SET intent_together = ARRAY[0] WHERE partition = 0")
    identity = ledger_id(connection) if version == 7 else None
    before = contents(connection)
    before["sink_progress"][0]["intent_together"] = [0]  # what the migration fills in for version 1
    with pytest.raises(StoreDown, match="logpipe migrate"):
        schema.require(connection)
    assert migrate(empty_postgres_url) == NAMES
    after = contents(connection)
    for table in TABLES:
        kept = [{name: row[name] for name in old} for old, row in zip(before[table], after[table], strict=True)]
        assert kept == before[table]
    assert identity in (None, ledger_id(connection))
    assert [row["stuck"] for row in after["slots"]] == [""]
    assert connection.execute("SELECT version FROM ledger_version").fetchone() == (7,)
    with closing(Pool(empty_postgres_url, max_connections=1)) as pool:
        assert Watermarks(pool).settled() == 2
    assert connection.execute("SELECT nextval('batch_ids')").fetchone() == (3,)
    schema.build_index(connection)
    with closing(connect(postgres_url)) as new:
        assert columns_of(structure(connection)) == columns_of(structure(new))


def test_tables_that_processes_of_an_earlier_release_made_are_taken_over(
    empty_postgres_url: str, connection: Connection, postgres_url: str
) -> None:
    connection.execute(MADE_AT_RUN_TIME.encode())
    assert migrate(empty_postgres_url) == NAMES
    made = ("rollup_chunks", "closed_days", "realtime_windows")
    with closing(connect(postgres_url)) as new:
        found, wanted = ([row for row in structure(each) if row[0] in made] for each in (connection, new))
    assert found == wanted
    rows = [connection.execute(f"SELECT t::text FROM {table} AS t").fetchall() for table in made]
    assert rows == [
        [("(logs_by_level,7,2026-01-02,40,f)",)],
        [("(logs,20000,1,2,3,)",)],
        [('("2026-01-02 00:00:00+00",auth,INFO,5)',)],
    ]


def columns_of(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    ours = (*TABLES, "replays", "ledger", "topics", "watermarks", "retention_clock", "dead_letters", "id_leaps")
    return [row for row in found if row[0] in (*ours, "dead_letter_index", "ledger_version")]


def test_processes_of_the_release_before_go_on(empty_postgres_url: str, connection: Connection) -> None:
    """Their check of the tables finds nothing to do, and what they write is accepted."""
    migrate(empty_postgres_url)
    connection.execute((SCHEMAS / "ledger_version_7.sql").read_bytes())
    connection.execute(ROWS_OF_VERSION_1.encode())
    schema.require(connection)


def test_a_ledger_of_version_7_is_taken_over_while_it_is_written(empty_postgres_url: str) -> None:
    """No statement waits for the transactions of a running ingest API, nor do these wait for it."""
    with ExitStack() as opened:
        old, writer = (opened.enter_context(closing(connect(empty_postgres_url))) for _ in range(2))
        old.execute((SCHEMAS / "ledger_version_7.sql").read_bytes())
        with writer.transaction():
            writer.execute("LOCK batches, slots, slot_positions, sink_progress IN ROW EXCLUSIVE MODE")
            started = time.monotonic()
            assert migrate(empty_postgres_url) == NAMES
            assert time.monotonic() - started < 10


def test_migrations_of_a_newer_release_are_accepted(own_postgres_url: str, tmp_path: Path) -> None:
    newer = migrations.Migrations(tmp_path)
    (tmp_path / "ledger-9999-more.sql").write_text("ALTER TABLE batches ADD COLUMN more text NOT NULL DEFAULT '';")
    with closing(connect(own_postgres_url)) as connection:
        assert migrations.apply(connection, schema.MIGRATIONS, newer) == ["ledger-9999-more"]
        schema.require(connection)
        slots.all_slots(connection)
    assert migrate(own_postgres_url) == []


def test_a_migration_that_fails_leaves_nothing_behind(own_postgres_url: str, tmp_path: Path) -> None:
    room = migrations.Migrations(tmp_path)
    (tmp_path / "room-0001-first.sql").write_text("CREATE TABLE first (n int);")
    (tmp_path / "room-0002-second.sql").write_text("CREATE TABLE second (n int); SELECT nonsense;")
    with closing(connect(own_postgres_url)) as connection:
        with pytest.raises(NeedsOperator, match=r"room-0002-second failed: .*nonsense"):
            migrations.apply(connection, room)
        found = connection.execute("SELECT to_regclass('first') IS NULL, to_regclass('second') IS NULL").fetchone()
        assert found == (False, True)
        (tmp_path / "room-0002-second.sql").write_text("CREATE TABLE second (n int);")
        assert migrations.apply(connection, room) == ["room-0002-second"]


def test_the_command_says_what_it_did_and_what_is_wrong(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", empty_postgres_url)
    done = CliRunner().invoke(main)
    assert done.exit_code == 0, done.output
    assert "migration ledger-0001-tables applied" in done.output
    with closing(connect(empty_postgres_url)) as connection:
        connection.execute("ALTER TABLE logs ALTER COLUMN level TYPE varchar")
    failed = CliRunner().invoke(main)
    assert failed.exit_code == 1
    assert "table logs: column level is varchar" in failed.output
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", f"postgresql://logpipe@127.0.0.1:{free_port()}/logpipe")
    assert CliRunner().invoke(main).exit_code == 1


def test_up_makes_the_tables_before_the_processes_start(stack_folder: Path) -> None:
    settings = LocalSettings.on_free_ports(stack_folder)
    with (
        Stack(settings, ("postgres", "kafka", "ingest-api")),
        closing(connect(settings.urls()["LOGPIPE_POSTGRES_URL"])) as opened,
    ):
        schema.require(opened)
        assert "logpipe migrate" not in readiness(settings.ingest_port)
    elsewhere = settings.model_copy(update={"postgres_url": SecretStr(f"postgresql://127.0.0.1:{free_port()}/logpipe")})
    with pytest.raises(StoreDown):
        Stack(elsewhere, ("kafka", "ingest-api")).up()
    Stack(elsewhere).down()


@pytest.mark.parametrize(
    ("process", "setting"), [("query-api", "LOGPIPE_QUERY_PORT"), ("alerting", "LOGPIPE_ALERTING_PORT")]
)
def test_a_process_that_starts_before_the_migration_waits_and_then_serves(
    empty_postgres_url: str, kafka_url: str, process: str, setting: str
) -> None:
    port = free_port()
    environment = {setting: str(port), "LOGPIPE_POSTGRES_URL": empty_postgres_url, "LOGPIPE_KAFKA_URL": kafka_url}
    started = Process(process, environment, port)
    try:
        started.launch()
        until(lambda: "logpipe migrate" in readiness(port))
        migrate(empty_postgres_url)
        started.await_ready()
    finally:
        assert started.stop() == 0, started.output()


def readiness(port: int) -> str:
    try:
        return json.dumps(httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).json())
    except httpx.HTTPError:
        return ""
