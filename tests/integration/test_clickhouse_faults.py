"""Inserts into ClickHouse that fail or are interrupted: a reported success is stored, and nothing is doubled."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from services.core.dataset import Column, Dataset
from services.core.errors import LogpipeError, StoreDown
from services.core.ids import first_id
from services.core.ports import Block
from services.core.rows import RowCodec
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.tables import create_table
from services.stores.clickhouse.writer import ClickHouseWriter
from tests.conftest import short_folder
from tests.processes import free_port
from tests.skips import needs_package, needs_privilege
from tests.waiting import until

DAY = 20_000
NOON = DAY * 86_400_000_000 + 43_200_000_000
EVERYTHING = 1 << 30
ROWS = 3000
DATASET = Dataset(
    "faults",
    "fault",
    "faults",
    "faults",
    key="text",
    time="timestamp",
    columns=(Column("timestamp", "timestamp", required=True), Column("text", "text", required=True)),
    groupings=(),
    orderings=(),
    filters=(),
)
NO_MERGES = "max_bytes_to_merge_at_max_space_in_pool = 1"
DEDUPLICATED = "SETTINGS non_replicated_deduplication_window = 100"


class Engine:
    """The embedded engine in a process of its own. Root starts it as another user, who must reach `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        shim = [sys.executable, "-m", "services.local.clickhouse_shim", "--folder", str(self.folder)]
        self._process = subprocess.Popen([*shim, "--port", str(self.port)], stdout=subprocess.DEVNULL)
        until(self._answers)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)

    def restart(self) -> None:
        self.stop(signal.SIGKILL)
        self.start()

    def post(self, body: str, **arguments: str | int) -> httpx.Response:
        return httpx.post(self.url, params=arguments, content=body.encode(), timeout=60)

    def query(self, text: str) -> str:
        reply = self.post(text)
        assert reply.status_code == 200, reply.text
        return reply.text.strip()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ping").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def running(folder: Path) -> Iterator[Engine]:
    engine = Engine(folder)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with short_folder() as folder, running(folder) as started:
        yield started


@pytest.fixture
def table(engine: Engine) -> str:
    return f"t_{uuid.uuid4().hex}"


@pytest.fixture
def writer(engine: Engine) -> ClickHouseWriter:
    engine.query(f"DROP TABLE IF EXISTS {DATASET.name} SYNC")
    made = ClickHouseWriter(engine.url)
    made.prepare(DATASET)
    return made


@contextmanager
def strace(engine: Engine, *options: str) -> Iterator[None]:
    """Inject faults into the engine's system calls."""
    if shutil.which("strace") is None:
        needs_package("strace")
    command = ["strace", "-f", "-p", str(engine.pid), *options, "-o", "/dev/null"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        if "attached" not in line:
            needs_privilege(f"strace cannot attach to a process here: {line.strip()}")
        yield
    finally:
        tracer.terminate()
        tracer.communicate()


FAILING_RENAME = ("-e", "trace=rename,renameat,renameat2", "-e", "inject=rename,renameat,renameat2:error=EIO")


def blocks(start: int = 0, rows: int = ROWS) -> list[Block]:
    """The same for the same `start`."""
    made = [(first_id(start + 1) + n, NOON, NOON + n, f"text {n} at row 3") for n in range(rows)]
    lines = b"".join(line + b"\n" for line in RowCodec(DATASET).encode(made))
    return [Block(DATASET, "topic", 0, start, start + 9, DAY, rows, lines)]


def counted(engine: Engine) -> list[tuple[int, int, int]]:
    with closing(ClickHouseReader(engine.url)) as reader:
        return list(reader.counts(DATASET, 0, EVERYTHING))


# ---- the engine reports every failure -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("definition", "rows", "settings", "code"),
    [
        ("(id Int64, CONSTRAINT positive CHECK id > 0) ENGINE = MergeTree ORDER BY id", [1, 2, -3], {}, 469),
        (
            "(id Int64) ENGINE = MergeTree ORDER BY id PARTITION BY id",
            [1, 2],
            {"max_partitions_per_insert_block": 1},
            252,
        ),
        ("(id Int64, d Int64 DEFAULT throwIf(id = 2)) ENGINE = MergeTree ORDER BY id", [1, 2], {}, 395),
        ("(id Int64) ENGINE = MergeTree ORDER BY id", [1, "x"], {}, 27),
        (
            "(id Int64, s String DEFAULT repeat('x', 1000)) ENGINE = MergeTree ORDER BY id",
            [1] * 50_000,
            {"max_memory_usage": 1_000_000},
            241,
        ),
    ],
)
def test_an_insert_that_fails_is_an_error_with_clickhouses_code(
    engine: Engine, table: str, definition: str, rows: list[object], settings: dict[str, int], code: int
) -> None:
    engine.query(f"CREATE TABLE {table} {definition}")
    body = "".join(f'{{"id":{row if isinstance(row, int) else chr(34) + str(row) + chr(34)}}}\n' for row in rows)
    for _ in range(2):
        reply = engine.post(f"INSERT INTO {table} FORMAT JSONEachRow\n{body}", **settings)
        assert reply.status_code >= 400
        assert reply.headers["X-ClickHouse-Exception-Code"] == str(code), reply.text
    assert engine.query(f"SELECT count() FROM {table}") == "0"


def test_too_many_parts_are_an_error(engine: Engine, table: str) -> None:
    limits = "parts_to_throw_insert = 1, parts_to_delay_insert = 1, max_delay_to_insert = 1"
    engine.query(f"CREATE TABLE {table} (id Int64) ENGINE = MergeTree ORDER BY id SETTINGS {limits}, {NO_MERGES}")
    insert = f'INSERT INTO {table} FORMAT JSONEachRow\n{{"id":1}}'
    replies = [engine.post(insert) for _ in range(3)]
    stored = sum(reply.status_code == 200 for reply in replies)
    assert replies[-1].headers["X-ClickHouse-Exception-Code"] == "252"
    assert engine.query(f"SELECT count() FROM {table}") == str(stored)


def test_a_materialized_view_that_throws_is_an_error(engine: Engine, table: str) -> None:
    engine.query(f"CREATE TABLE {table} (id Int64) ENGINE = MergeTree ORDER BY id")
    engine.query(f"CREATE TABLE {table}_to (id Int64) ENGINE = MergeTree ORDER BY id")
    view = f"CREATE MATERIALIZED VIEW {table}_view TO {table}_to AS SELECT throwIf(id = 2) + id AS id FROM {table}"
    engine.query(view)
    reply = engine.post(f'INSERT INTO {table} FORMAT JSONEachRow\n{{"id":1}}\n{{"id":2}}')
    assert reply.headers["X-ClickHouse-Exception-Code"] == "395"


@pytest.mark.parametrize("form", ["JSONEachRow", "Native", "RowBinary", "CSV", "TabSeparated", "Values", "Arrow"])
def test_every_format_is_stored_byte_by_byte(engine: Engine, table: str, form: str) -> None:
    rows = (
        "number AS a, arrayElement(['x;y\\n;\\n\\n', 'a\\0b', '\\'\"`', '-- c\\n/* */', 'é☃', '\\\\'], number + 1) AS s"
    )
    wanted = engine.query(f"SELECT count(), sum(cityHash64(a, s)) FROM (SELECT {rows} FROM numbers(6))")
    data = httpx.post(engine.url, content=f"SELECT {rows} FROM numbers(6) FORMAT {form}".encode(), timeout=60).content
    engine.query(f"CREATE TABLE {table} (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
    insert = f"INSERT INTO {table} (`a`, `s`) SETTINGS max_insert_threads = 1 FORMAT {form}"
    reply = httpx.post(engine.url, params={"query": insert}, content=data, timeout=60)
    assert reply.status_code == 200, reply.text
    assert '"written_rows": "6"' in reply.headers["X-ClickHouse-Summary"]
    assert engine.query(f"SELECT count(), sum(cityHash64(a, s)) FROM {table}") == wanted


def test_a_rename_that_fails_is_an_error(engine: Engine, table: str) -> None:
    engine.query(f"CREATE TABLE {table} (id Int64) ENGINE = MergeTree ORDER BY id {DEDUPLICATED}")
    with strace(engine, *FAILING_RENAME):
        reply = engine.post(f'INSERT INTO {table} FORMAT JSONEachRow\n{{"id":1}}', insert_deduplication_token="t")
        assert reply.status_code == 500, reply.text
    assert engine.query(f"SELECT count() FROM {table}") == "0"


RUNNING_INSERTS = "SELECT count() FROM system.processes WHERE query_kind = 'Insert'"


@contextmanager
def slow_insert(engine: Engine, table: str, query_id: str) -> Iterator[None]:
    """It runs when the context begins. Whoever uses the context has it killed before the end."""
    engine.query(f"CREATE TABLE {table} (id Int64, d UInt8 DEFAULT sleepEachRow(0.2)) ENGINE = MergeTree ORDER BY id")
    replies: list[httpx.Response] = []
    insert = f"INSERT INTO `{table}` (id) FORMAT JSONEachRow\n" + '{"id":1}\n' * 14
    thread = threading.Thread(target=lambda: replies.append(engine.post(insert, query_id=query_id)))
    thread.start()
    until(lambda: engine.query(RUNNING_INSERTS) == "1")
    yield
    assert engine.query(RUNNING_INSERTS) == "0"
    thread.join()
    assert replies[0].headers["X-ClickHouse-Exception-Code"] == "394"
    assert engine.query(f"SELECT count() FROM {table}") == "0"


def test_a_running_insert_is_killed_by_its_query_id(engine: Engine, table: str) -> None:
    """And KILL QUERY returns after the insert has ended."""
    with slow_insert(engine, table, f"slow-{table}"):
        killed = engine.query(f"KILL QUERY WHERE query_id = 'slow-{table}' SYNC FORMAT JSONCompactEachRow")
        assert killed.startswith('["finished"')


@pytest.mark.parametrize("named", ["insert-{table}-1", "some-{table}"])
def test_every_running_insert_of_a_dataset_is_ended(engine: Engine, table: str, named: str) -> None:
    """Also one of an older release, which named its inserts otherwise."""
    writer = ClickHouseWriter(engine.url)
    with slow_insert(engine, table, named.format(table=table)):
        writer.end_writes(replace(DATASET, name=f"{table}_other"))
        assert engine.query(RUNNING_INSERTS) == "1"
        writer.end_writes(replace(DATASET, name=table))


def test_an_insert_is_on_the_disk_before_it_is_acknowledged(engine: Engine) -> None:
    """Also into a table of a release that left this to the page cache."""
    old = re.sub(r",\s+fsync_after_insert = 1, fsync_part_directory = 1", "", create_table(DATASET))
    assert "fsync" not in old
    engine.query(f"DROP TABLE IF EXISTS {DATASET.name}")
    engine.query(old)
    ClickHouseWriter(engine.url).prepare(DATASET)
    settings = engine.query(f"SELECT engine_full FROM system.tables WHERE name = '{DATASET.name}'")
    assert "fsync_after_insert = 1, fsync_part_directory = 1" in settings
    ClickHouseWriter(engine.url).prepare(DATASET)
    assert engine.query(f"SELECT engine_full FROM system.tables WHERE name = '{DATASET.name}'") == settings
    engine.query(f"DROP TABLE {DATASET.name}")


# ---- the writer loses and doubles nothing ---------------------------------------------------------------------------


def test_a_full_disk_is_an_error_and_its_rows_are_completed_when_there_is_room(stack_folder: Path) -> None:
    disk = stack_folder
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        needs_privilege(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with running(disk) as engine:
            writer = ClickHouseWriter(engine.url)
            writer.prepare(DATASET)
            engine.query(f"ALTER TABLE {DATASET.name} MODIFY SETTING {NO_MERGES}")
            written: list[int] = []
            failed: list[int] = []
            while len(failed) < 3:
                start = 10 * (len(written) + len(failed))
                assert start < 1000, "the disk never became full"
                try:
                    writer.write(incompressible(start))
                    written.append(start)
                except LogpipeError:
                    failed.append(start)
            held = [(batch, rows, rows) for batch, rows, _ in counted(engine)]
            assert held == [(start + 1, ROWS, ROWS) for start in written]
            subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
            for start in [*failed, *written]:
                assert list(writer.complete(incompressible(start))) == []
            assert counted(engine) == [(start + 1, ROWS, ROWS) for start in sorted([*written, *failed])]
    finally:
        subprocess.run(["umount", disk], check=True)


def incompressible(start: int) -> list[Block]:
    chance = random.Random(start)
    made = [(first_id(start + 1) + n, NOON, NOON + n, chance.randbytes(120).hex()) for n in range(ROWS)]
    lines = b"".join(line + b"\n" for line in RowCodec(DATASET).encode(made))
    return [Block(DATASET, "topic", 0, start, start + 9, DAY, ROWS, lines)]


def test_a_data_folder_that_is_moved_away_is_an_error() -> None:
    with short_folder() as folder, running(folder) as engine:
        writer = ClickHouseWriter(engine.url)
        writer.prepare(DATASET)
        writer.write(blocks(0))
        (folder / "data").rename(folder / "away")
        with pytest.raises(StoreDown):
            writer.write(blocks(10))
        shutil.rmtree(folder / "data", ignore_errors=True)
        (folder / "away").rename(folder / "data")
        engine.restart()
        for start in (10, 0):
            writer.complete(blocks(start))
        assert counted(engine) == [(1, ROWS, ROWS), (11, ROWS, ROWS)]


def test_rows_are_stored_though_renames_fail_and_tokens_are_remembered(
    engine: Engine, writer: ClickHouseWriter
) -> None:
    with strace(engine, *FAILING_RENAME), pytest.raises(StoreDown):
        writer.write(blocks())
    for _ in range(2):
        with strace(engine, *FAILING_RENAME), pytest.raises(StoreDown):
            writer.complete(blocks())
    assert counted(engine) == []
    writer.complete(blocks())
    assert counted(engine) == [(1, ROWS, ROWS)]


def test_an_engine_that_is_killed_in_an_insert_has_every_row_once() -> None:
    with short_folder() as folder, running(folder) as engine:
        writer = ClickHouseWriter(engine.url)
        writer.prepare(DATASET)
        for turn in range(2):
            starts = iter(range(turn * 10_000, turn * 10_000 + 10_000, 10))
            writer.write(blocks(next(starts)))  # so that an acknowledged insert precedes the crash
            killer = threading.Timer(0.01 + 0.05 * turn, os.kill, (engine.pid, signal.SIGKILL))
            killer.start()
            last = write_until_it_fails(writer, starts)
            killer.join()
            engine.stop(signal.SIGKILL)
            engine.start()
            writer.complete(blocks(last))
            batches = [batch for batch in counted(engine) if batch[0] > turn * 10_000]
            assert batches == [(start + 1, ROWS, ROWS) for start in range(turn * 10_000, last + 1, 10)]


def write_until_it_fails(writer: ClickHouseWriter, starts: Iterator[int]) -> int:
    """Return the start of the blocks whose write failed."""
    for start in starts:
        try:
            writer.write(blocks(start))
        except LogpipeError:
            return start
    pytest.fail("no write failed")


class Proxy:
    """Passes one request at a time on to the engine. `hold` keeps requests with rows back; replies can be dropped."""

    def __init__(self, target: Engine) -> None:
        self._target = target
        self.port = free_port()
        self.drop_reply = False
        self.released = threading.Event()
        self.released.set()
        self.held = threading.Event()
        self.passed_on = threading.Event()
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (received := client.recv(65536)):
                    return
                head += received
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            missing = (int(length[1]) if length else 0) - len(head.partition(b"\r\n\r\n")[2])
            while missing > 0:
                received = client.recv(65536)
                missing -= len(received)
                head += received
            is_insert = b"INSERT" in head[:2000]
            if is_insert and not self.released.is_set():
                client.shutdown(socket.SHUT_RDWR)  # the writer loses the connection, the request is still under way
                self.held.set()
                self.released.wait(60)
            head = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            with socket.create_connection(("127.0.0.1", self._target.port)) as server:
                server.sendall(head)
                reply = b""
                while received := server.recv(65536):
                    reply += received
            if is_insert:
                self.passed_on.set()
                if self.drop_reply:
                    return
            with suppress(OSError):
                client.sendall(reply)


@pytest.fixture
def proxy(engine: Engine) -> Iterator[Proxy]:
    with closing(Proxy(engine)) as opened:
        yield opened


def test_a_lost_reply_is_not_taken_for_a_failure(engine: Engine, writer: ClickHouseWriter, proxy: Proxy) -> None:
    distant = ClickHouseWriter(proxy.url)
    distant.prepare(DATASET)
    proxy.drop_reply = True
    with pytest.raises(StoreDown):
        distant.write(blocks())
    assert counted(engine) == [(1, ROWS, ROWS)]
    proxy.drop_reply = False
    distant.complete(blocks())
    assert counted(engine) == [(1, ROWS, ROWS)]


def test_a_write_that_reaches_the_engine_after_its_completion_is_dropped(
    engine: Engine, writer: ClickHouseWriter, proxy: Proxy
) -> None:
    distant = ClickHouseWriter(proxy.url)
    distant.prepare(DATASET)
    proxy.released.clear()
    with pytest.raises(StoreDown):
        distant.write(blocks())
    assert proxy.held.wait(60)
    writer.complete(blocks())
    proxy.released.set()
    assert proxy.passed_on.wait(60)
    assert counted(engine) == [(1, ROWS, ROWS)]


def test_a_write_that_still_runs_is_ended_before_the_table_is_searched(
    engine: Engine, writer: ClickHouseWriter
) -> None:
    """Its column is slow, so that the write runs for a long time unless `complete` ends the write."""
    engine.query(f"ALTER TABLE {DATASET.name} ADD COLUMN slow UInt8 DEFAULT if(text = 'slow', sleepEachRow(0.5), 0)")
    made = [(first_id(1) + n, NOON, NOON + n, "slow") for n in range(5)]
    lines = b"".join(line + b"\n" for line in RowCodec(DATASET).encode(made))
    slow = [Block(DATASET, "topic", 0, 0, 9, DAY, 5, lines)]
    failures: list[Exception] = []

    def write() -> None:
        try:
            ClickHouseWriter(engine.url).write(slow)
        except StoreDown as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: engine.query("SELECT count() FROM system.processes WHERE query_kind = 'Insert'") == "1")
    writer.complete(slow)
    thread.join()
    assert len(failures) == 1
    assert counted(engine) == [(1, 5, 5)]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Host": "evil.example"}, 421),
    ],
    ids=["image", "link", "beacon", "rebound name"],
)
def test_a_page_of_another_site_reaches_no_engine(
    engine: Engine, table: str, headers: dict[str, str], status: int
) -> None:
    engine.query(f"CREATE TABLE {table} (a Int8) ENGINE = Memory")
    statement = {"query": f"DROP TABLE {table}"}
    assert httpx.get(engine.url, params=statement, headers=headers, timeout=60).status_code == status
    assert httpx.post(engine.url, params=statement, headers=headers, timeout=60).status_code == status
    assert engine.query(f"EXISTS TABLE {table}") == "1"
