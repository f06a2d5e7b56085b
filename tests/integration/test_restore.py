"""PostgreSQL is restored from a backup while stores have gone on: no id comes twice, and nothing is stored twice."""

from random import Random

import psycopg

from services.datasets.logs import DATASET
from services.ledger import restore, sampling
from services.postgres.connection import connect, database_of, in_database
from tests.integration.test_replay import STORE, World, ended, failed, filled
from tests.waiting import until


def admin(world: World) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(in_database(world.postgres_url, "postgres"), autocommit=True)


def wait_for_sessions_to_end(connection: psycopg.Connection[tuple[object, ...]], database: str) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
    until(lambda: connection.execute(query, (database,)).fetchone() == (0,))


def test_a_restored_ledger_goes_on_above_all_ids_and_doubles_nothing() -> None:
    with filled(20_000) as world, admin(world) as connection:
        assert "stop every ingest API" in failed(world.command("ledger-restored", "--yes"))
        database = database_of(world.postgres_url)
        world.ingest.stop()
        world.stream.stop()
        world.ledger.close()
        wait_for_sessions_to_end(connection, database)
        connection.execute(f"CREATE DATABASE backup TEMPLATE {database}")
        world.ingest.start()
        world.stream.start()
        world.post(1000)
        until(lambda: sum(rows for _, rows, _ in world.reader.counts(DATASET, 1, 1_000_000)) == 21_000)
        last = max(batch for batch, _, _ in world.reader.counts(DATASET, 1, 1_000_000))
        world.ingest.stop()
        world.stream.stop()
        wait_for_sessions_to_end(connection, database)
        connection.execute(f"DROP DATABASE {database}")
        connection.execute(f"ALTER DATABASE backup RENAME TO {database}")

        with psycopg.connect(world.postgres_url) as restored:  # as if the backup had been made under load
            restored.execute(
                "UPDATE batches SET published_at = NULL, parts = NULL, topic = NULL"
                " WHERE batch_id = (SELECT max(batch_id) FROM batches)"
            )
            restored.execute("UPDATE slot_positions SET next_offset = 0")
        assert "next: start the ingest API" in ended(world.command("ledger-restored", "--yes"))
        world.ingest.start()
        assert "logs into clickhouse: 0 rows replayed" in ended(world.replay())
        world.stream.start()
        world.post(500)
        with connect(world.postgres_url) as ledger:
            [(first,)] = ledger.execute("SELECT max(batch_id) FROM batches").fetchall()
            assert len(sampling.choose(ledger, "logs", 0, first, 5, Random(1))) == 5
        assert first > last
        until(lambda: sum(rows for _, rows, _ in world.reader.counts(DATASET, first, first)) == 500)
        process = world.command("verify", "--store", "postgres", "--store", "clickhouse", "--all", "--wait", "60")
        report, _ = process.communicate(timeout=120)
        assert process.returncode == 1
        assert f"{1000:,}" in report  # the rows that PostgreSQL lost are named, and no others
        counted = list(world.reader.counts(DATASET, 1, first))
        assert sum(rows for _, rows, _ in counted) == sum(ids for _, _, ids in counted) == 21_500
        world.ingest.stop()
        with connect(world.postgres_url) as ledger:  # the same backup, once more
            ledger.execute("SELECT setval('batch_ids', 100)")
            ledger.execute("TRUNCATE id_leaps")
            assert restore.after_restore(ledger, [STORE], [DATASET.name]).last > first
