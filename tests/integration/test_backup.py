"""A backup under load; everything is wiped; a restore; load again; and every store has each row once."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest

from services.backup import folder as files
from services.core.errors import NeedsOperator, StoreDown
from services.datasets.logs import DATASET
from services.ledger.watermark import Watermarks
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.migrate.service import migrate
from services.postgres.connection import connect, in_database
from services.postgres.pool import Pool
from services.stores import open_reader
from tests.processes import Process, free_port
from tests.waiting import until

PROGRAMS = ("postgres", "kafka", "namenode", "datanode", "clickhouse")
STORES = ("clickhouse", "lake")
LINE = "2026-01-31 12:00:%02d,000 INFO a.B: %s %d\n"


class World:
    """The servers of a stack, the processes of the pipeline, and the commands of an operator."""

    def __init__(self, folder: Path) -> None:
        self.stack = Stack(LocalSettings.on_free_ports(folder / "stack"), PROGRAMS)
        self.backups = folder / "backups"
        self._files = folder
        self.urls = {
            **self.stack.settings.urls(),
            "LOGPIPE_INGEST_DISK_FLOOR": "0",
            "LOGPIPE_BLOCK_SECONDS": "0.3",
            "LOGPIPE_SEND_STATE": str(folder / "state"),
        }
        self.postgres_url = self.urls["LOGPIPE_POSTGRES_URL"]

    def up(self) -> None:
        self.stack.up()

    @contextmanager
    def pipeline(self, stores: tuple[str, ...] = STORES) -> Iterator[None]:
        with ExitStack() as running:
            self.ingest = running.enter_context(self._process("ingest-api", "LOGPIPE_INGEST_PORT"))
            self.urls["LOGPIPE_INGEST_URL"] = self.ingest.url
            for store in stores:
                command = f"stream-to-store --store {store}"
                running.enter_context(self._process(command, "LOGPIPE_STREAM_TO_STORE_PORT"))
            yield

    def _process(self, command: str, port_variable: str) -> Process:
        port = free_port()
        return Process(command, {**self.urls, port_variable: str(port)}, port)

    @contextmanager
    def load(self) -> Iterator[None]:
        stop = threading.Event()
        row = '{"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "load", "message": "m"}'

        def run() -> None:
            headers = {"content-type": "application/x-ndjson"}
            while not stop.wait(0.05):
                body = "\n".join([row] * 200)
                sent = httpx.post(f"{self.ingest.url}/api/collect/logs", content=body, headers=headers, timeout=60)
                assert sent.status_code == 200, sent.text

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def send(self, first: int, last: int, *options: str) -> str:
        """Write lines into the log file, up to `last`, and send it."""
        file = self._files / "app.log"
        with file.open("a") as opened:
            opened.writelines(LINE % (number % 60, "line", number) for number in range(first, last + 1))
        return self.run("send", str(file), "--format", "log4j", *options)

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "services", *arguments],
            env=os.environ | self.urls,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def rows(self) -> int:
        with closing(connect(self.postgres_url)) as connection:
            [(rows,)] = connection.execute("SELECT coalesce(sum(rows), 0)::bigint FROM batches").fetchall()
        return int(rows)

    def watermark(self, store: str) -> int:
        """0 also when the store is said to lack what was loaded before."""
        with closing(Pool(self.postgres_url)) as ledger, pytest.MonkeyPatch.context() as patch:
            for name, value in self.urls.items():
                patch.setenv(name, value)
            with closing(open_reader(store)) as reader, suppress(StoreDown):
                return Watermarks(ledger).of(reader, DATASET)
        return 0

    def messages(self) -> list[str]:
        query = "SELECT message FROM logs WHERE service <> 'load' ORDER BY id"
        with closing(connect(self.postgres_url)) as connection:
            return [message for (message,) in connection.execute(query).fetchall()]


@pytest.fixture
def world(stack_folder: Path) -> Iterator[World]:
    stack_folder.mkdir()
    made = World(stack_folder)
    try:
        made.up()
        yield made
    finally:
        made.stack.down(wipe=True)


def test_a_backup_under_load_is_restored_after_everything_was_wiped(world: World) -> None:
    migrate(world.postgres_url)
    with world.pipeline():
        with world.load():
            world.send(1, 2_500)
            until(lambda: world.rows() > 6_000)
            world.run("verify", "--sample", "5", "--wait", "60")
            assert all(world.watermark(store) > 0 for store in STORES)
            backed_up = world.run("backup", str(world.backups))
            before = world.rows()
            world.send(2_501, 4_000, "--resume")
            until(lambda: world.rows() > before + 4_000)
        in_use = world.run("restore", str(world.backups), "--yes", code=1)
        assert "is in use by" in in_use
        assert "stop every process of the pipeline first" in in_use
    assert f"backup written to {world.backups}" in backed_up
    world.stack.down(wipe=True)
    world.up()
    told = world.run("restore", str(world.backups), "--yes")
    assert "lost: rows that were accepted after the backup was begun" in told
    assert "logpipe replay --store STORE` for clickhouse and lake" in told
    kept = world.messages()
    assert 2_500 <= len(kept) < 4_000
    assert all(world.watermark(store) == 0 for store in STORES)  # of empty stores
    with world.pipeline():
        with world.load():
            outputs = [world.run("replay", "--store", store) for store in STORES]
            resent = world.send(4_001, 4_200, "--resume")
        assert "the ledger was restored from a backup" in resent
        assert sorted(world.messages()) == sorted(f"line {number}" for number in range(1, 4_201))
        verified = world.run("verify", "--all", "--wait", "90")
    for output, store in zip(outputs, STORES, strict=True):
        [written] = [part.split()[0] for part in output.split(f"logs into {store}: ")[1:]]
        assert int(written.replace(",", "")) > 2_500, output
    assert "differs" not in verified


def test_a_database_with_rows_is_kept_and_a_backup_that_is_damaged_is_refused(world: World) -> None:
    migrate(world.postgres_url)
    world.run("backup", str(world.backups))
    with world.pipeline():
        world.send(1, 100)
    second = world.run("backup", str(world.backups), "--keep", "1")
    assert "deleted" in second
    [backup] = world.backups.iterdir()
    with closing(connect(world.postgres_url)) as connection:
        connection.execute("UPDATE logs SET message = 'changed since'")
    told = world.run("restore", str(world.backups), "--yes")
    assert world.messages() == [f"line {number}" for number in range(1, 101)]
    [former] = [word for word in told.split() if word.startswith("logpipe_before_")]
    query = "SELECT DISTINCT message FROM logs"
    with psycopg.connect(in_database(world.postgres_url, former.rstrip(":"))) as connection:
        assert connection.execute(query).fetchall() == [("changed since",)]
    # The stores and the topics are as they were: nothing is missing in them, and a replay writes nothing.
    with world.pipeline(stores=()):
        for store in STORES:
            assert f"logs into {store}: 0 rows replayed" in world.run("replay", "--store", store)
    with world.pipeline():
        world.run("verify", "--all", "--wait", "60")
    dump = backup / "postgres.dump"
    dump.write_bytes(dump.read_bytes()[:-1] + b"x")
    assert "was changed since it was written, or is damaged" in world.run("restore", str(backup), "--yes", code=1)
    (backup / "backup.json").unlink()
    assert "has no complete backup" in world.run("restore", str(world.backups), "--yes", code=1)


def test_an_interrupted_backup_leaves_nothing_and_old_backups_are_deleted(tmp_path: Path) -> None:
    now = datetime(2026, 11, 27, 12, tzinfo=UTC)

    def fail(file: Path) -> None:
        file.write_text("half")
        raise NeedsOperator("pg_dump failed")

    with pytest.raises(NeedsOperator, match="pg_dump failed"):
        files.write(tmp_path, now, "ledger", fail)
    assert list(tmp_path.iterdir()) == []
    made = [files.write(tmp_path, now + timedelta(days=day), "ledger", lambda file: file.touch()) for day in range(4)]
    (made[1] / "backup.json").unlink()  # it was interrupted, by a power cut
    (tmp_path / "other").mkdir()
    assert files.find(tmp_path).dump.parent == made[3]
    assert files.keep(tmp_path, 2) == made[:2]
    assert sorted(path.name for path in tmp_path.iterdir()) == [made[2].name, made[3].name, "other"]
    assert files.keep(tmp_path, 2) == files.keep(tmp_path, 9) == []
    (made[3] / "backup.json").write_text("{")
    with pytest.raises(NeedsOperator, match="cannot be read"):
        files.find(tmp_path)
