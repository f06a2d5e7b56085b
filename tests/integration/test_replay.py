"""`logpipe replay` with real PostgreSQL, Kafka and ClickHouse engine, while rows go on coming in; killed in between."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import clickhouse_connect
import httpx
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic  # type: ignore[attr-defined]

from services.core.errors import Conflict, StoreDown
from services.datasets import all_datasets
from services.datasets.logs import DATASET
from services.ledger import reading
from services.ledger.replays import ReplayProgress
from services.ledger.watermark import Watermarks
from services.postgres.pool import Pool
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.writer import ClickHouseWriter
from services.streams.kafka import KafkaPartitionReader
from tests.conftest import running
from tests.processes import Process, free_port
from tests.waiting import until

HISTORY_ROWS = 160_000
REQUEST_ROWS = 4_000
STORE = "clickhouse"


@dataclass
class World:
    urls: dict[str, str]
    ingest: Process
    stream: Process
    chance: random.Random = field(default_factory=lambda: random.Random(11))

    def __post_init__(self) -> None:
        self.postgres_url = self.urls["LOGPIPE_POSTGRES_URL"]
        self.reader = ClickHouseReader(self.urls["LOGPIPE_CLICKHOUSE_URL"])
        self.ledger = Pool(self.postgres_url)

    def post(self, rows: int) -> None:
        row = '{"timestamp": "2026-01-31T12:00:00.%06dZ", "level": "INFO", "service": "s-%d", "message": "m"}'
        body = "\n".join(row % (n, self.chance.randrange(99)) for n in range(rows))
        headers = {"content-type": "application/x-ndjson"}
        reply = httpx.post(f"{self.ingest.url}/api/collect/logs", content=body, headers=headers, timeout=60)
        assert reply.status_code == 200, reply.text

    @contextmanager
    def load(self) -> Iterator[None]:
        """Rows keep coming in meanwhile."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(0.05):
                self.post(500)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def command(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "services", *arguments],
            env=os.environ | self.urls,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def replay(self, *arguments: str) -> "subprocess.Popen[str]":
        return self.command("replay", "--store", STORE, *arguments)

    def verify(self) -> None:
        stores = ("--store", "postgres", "--store", STORE)
        process = self.command("verify", *stores, "--all", "--wait", "60", "--json")
        report, errors = process.communicate(timeout=120)
        assert process.returncode == 0, report + errors

    def sql(self, query: str, *parameters: Any) -> list[Any]:
        with self.ledger.connection() as connection:
            done = connection.execute(query, parameters)
            return done.fetchall() if done.description else []

    def replay_at(self) -> int | None:
        """The batch a replay of the logs goes on with; None when none is under way."""
        found = self.sql("SELECT next_batch FROM replays WHERE dataset = 'logs'")
        return found[0][0] if found else None

    def wipe_tables(self) -> None:
        with closing(clickhouse_connect.get_client(dsn=self.urls["LOGPIPE_CLICKHOUSE_URL"])) as client:
            for dataset in all_datasets():
                client.command(f"DROP TABLE {dataset.name} SYNC")

    def watermark(self) -> int:
        return Watermarks(self.ledger).of(self.reader, DATASET)

    def health(self) -> str:
        """Why the stream is not ready."""
        try:
            return httpx.get(f"{self.stream.url}/readyz", timeout=10).text
        except httpx.TransportError:
            return "starting"

    def last(self) -> int:
        with self.ledger.connection() as connection:
            return reading.last_batch(connection)

    def delete_head(self) -> None:
        """What retention does: another length of each partition."""
        with closing(KafkaPartitionReader(self.urls["LOGPIPE_KAFKA_URL"], DATASET.topic)) as topic:
            bounds = topic.bounds()
        admin = AdminClient({"bootstrap.servers": self.urls["LOGPIPE_KAFKA_URL"]})
        cut = [
            TopicPartition(DATASET.topic, p, first + (end - first) * (p + 2) // 8) for p, (first, end) in bounds.items()
        ]
        for future in admin.delete_records(cut).values():
            future.result(30)


def ended(process: "subprocess.Popen[str]") -> str:
    """Its output; it has to end well."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    return output


def replayed(output: str) -> int:
    """Rows of the logs."""
    [line] = [line for line in output.splitlines() if line.startswith("logs into")]
    return int(line.split()[3].replace(",", ""))


def left_to_the_stream(output: str) -> int:
    """Rows of the logs."""
    [line] = [line for line in output.splitlines() if line.startswith("logs into")]
    return int(line.split(", ")[-1].split()[0].replace(",", ""))


def failed(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, output + errors
    return " ".join(errors.split())


@contextmanager
def filled(rows: int) -> Iterator[World]:
    """A world whose stores have loaded so many rows."""
    with (
        running("postgres", "kafka", "clickhouse") as stack,
    ):
        ports = free_port(), free_port()
        urls = {
            **stack.settings.urls(),
            "LOGPIPE_INGEST_PORT": str(ports[0]),
            "LOGPIPE_STREAM_TO_STORE_PORT": str(ports[1]),
            "LOGPIPE_BLOCK_SECONDS": "0.2",
        }
        with (
            Process("ingest-api", urls, ports[0]) as ingest,
            Process(f"stream-to-store --store {STORE}", urls, ports[1]) as stream,
        ):
            found = World(urls, ingest, stream)
            for _ in range(rows // REQUEST_ROWS):
                found.post(REQUEST_ROWS)
            until(lambda: found.watermark() == found.last())
            yield found
            found.reader.close()
            found.ledger.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with filled(HISTORY_ROWS) as found:
        yield found


def test_a_store_whose_tables_were_dropped_is_refilled_under_load_though_killed(world: World) -> None:
    with world.load():
        world.wipe_tables()
        command = f"logpipe replay --store {STORE} --dataset logs"
        until(lambda: command in world.health())
        world.stream.stop()
        ClickHouseWriter(world.urls["LOGPIPE_CLICKHOUSE_URL"]).prepare(DATASET)
        with pytest.raises(StoreDown, match=command):
            world.watermark()
        first = world.replay()
        until(lambda: (world.replay_at() or 0) > 1)
        first.kill()
        first.communicate()
        at = world.replay_at()
        assert at is not None
        assert world.watermark() == at - 1  # what is not there yet is not claimed
        world.stream.start()
        output = ended(world.replay())
    assert 0 < replayed(output) < HISTORY_ROWS  # the first had brought some of it
    assert world.replay_at() is None
    until(lambda: world.watermark() == world.last())
    world.verify()


def test_what_the_topic_lost_before_the_stream_read_it_is_brought(world: World) -> None:
    world.stream.stop()
    world.wipe_tables()
    world.sql("DELETE FROM sink_progress WHERE store = %s", STORE)
    world.delete_head()
    world.stream.launch()  # begins at the beginning, and cannot
    until(lambda: "deleted before they were read" in world.health())
    world.stream.stop()
    with world.load():
        process = world.replay()
        until(lambda: world.replay_at() is not None or process.poll() is not None)
        world.stream.start()
        output = ended(process)
    [(accepted,)] = world.sql("SELECT sum(rows) FROM batches WHERE dataset = 'logs'")
    assert 0 < replayed(output) < accepted  # what the topic had left was for the stream
    assert left_to_the_stream(output) > 0
    until(lambda: world.watermark() == world.last())
    world.verify()


def test_what_a_topic_that_was_cut_gets_below_the_position_is_brought(world: World) -> None:
    world.stream.stop()
    world.sql("UPDATE sink_progress SET next_offset = next_offset + 10000 WHERE dataset = 'logs' AND partition = 0")
    for _ in range(4):
        world.post(2000)
    until(lambda: not world.sql("SELECT FROM batches WHERE parts IS NULL"))
    world.stream.launch()
    until(lambda: "was cut" in world.health())
    world.stream.stop()
    process = world.replay("--dataset", "logs")
    until(lambda: world.replay_at() is not None or process.poll() is not None)
    world.stream.start()
    assert 0 < replayed(ended(process)) < 8000  # the other partitions were for the stream
    until(lambda: world.watermark() == world.last())
    world.verify()


def test_one_replay_at_a_time(world: World) -> None:
    with closing(ReplayProgress(world.postgres_url, STORE, DATASET)):
        assert "another replay of logs" in failed(world.replay("--dataset", "logs"))
        with pytest.raises(Conflict):
            ReplayProgress(world.postgres_url, STORE, DATASET)
        ended(world.replay("--dataset", "events"))


def test_a_store_without_any_position_is_filled_without_its_stream(world: World) -> None:
    world.stream.stop()
    world.wipe_tables()
    world.sql("DELETE FROM sink_progress WHERE store = %s", STORE)
    ended(world.replay())
    assert world.watermark() == world.last()
    world.stream.start()
    world.post(100)
    world.verify()


def test_a_replay_of_what_is_there_writes_nothing(world: World) -> None:
    assert "logs into clickhouse: 0 rows replayed" in ended(world.replay("--from-batch", "1"))


def test_a_write_that_still_runs_is_ended_before_the_store_is_searched(world: World) -> None:
    """Of a consumer whose pending range the replay gave up, or of a replay that was killed: it would double rows."""
    slow = "SELECT number FROM numbers(400) WHERE sleepEachRow(0.05) = 0"
    copies = f"SELECT l.* FROM (SELECT * FROM logs LIMIT 1) AS l, ({slow}) AS n"
    insert = f"INSERT INTO logs {copies} SETTINGS max_block_size = 20"
    url, query = world.urls["LOGPIPE_CLICKHOUSE_URL"], {"query_id": "insert-logs-former", "query": insert}
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(httpx.post(url, params=query, timeout=60)))
    thread.start()
    with closing(clickhouse_connect.get_client(dsn=url)) as client:
        running_inserts = "SELECT count() FROM system.processes WHERE query_kind = 'Insert'"
        until(lambda: client.command(running_inserts) == 1)
        ended(world.replay("--dataset", "logs"))
    thread.join()
    assert replies[0].status_code == 500
    world.verify()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--store", "nowhere"), "no store 'nowhere'"),
        (("--store", "postgres"), "what stores are replayed from"),
        (("--store", STORE, "--dataset", "nothing"), "unknown dataset 'nothing'"),
        (("--store", STORE, "--from-batch", "1000000000"), "there is no batch 1000000000: the last is"),
    ],
)
def test_bad_input(world: World, arguments: tuple[str, ...], said: str) -> None:
    assert said in failed(world.command("replay", *arguments))


def test_where_a_stream_begins_is_not_set_under_its_feet(world: World) -> None:
    admin = AdminClient({"bootstrap.servers": world.urls["LOGPIPE_KAFKA_URL"]})
    for future in admin.create_partitions([NewPartitions("events.activity", 5)]).values():
        future.result(30)
    until(lambda: f"stop stream-to-store --store {STORE}" in failed(world.replay("--dataset", "events")))
    assert world.sql("SELECT FROM replays") == []


def test_a_topic_that_was_created_again_is_told_and_the_replay_brings_what_it_lost(world: World) -> None:
    """The last test here: the ingest API of this test would have to publish to the new topic."""
    world.stream.stop()
    stored = world.watermark()
    for _ in range(3):
        world.post(1000)
    until(lambda: not world.sql("SELECT FROM batches WHERE parts IS NULL"))
    admin = AdminClient({"bootstrap.servers": world.urls["LOGPIPE_KAFKA_URL"]})
    admin.delete_topics([DATASET.topic])[DATASET.topic].result(30)
    until(lambda: DATASET.topic not in admin.list_topics(timeout=60).topics)
    admin.create_topics([NewTopic(DATASET.topic, 4, 1)])[DATASET.topic].result(30)
    world.stream.launch()
    until(lambda: f"logpipe replay --store {STORE} --dataset logs" in world.health())
    assert world.watermark() == stored  # the rows are not claimed
    world.stream.stop()
    output = ended(world.replay("--dataset", "logs"))
    assert replayed(output) == 3000
    world.stream.start()
    assert world.watermark() == world.last()
    world.verify()
