"""kafka-source with real Kafka and PostgreSQL: hostile messages, kill -9, rebalances, a zombie, a new topic."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from services.core import instants
from services.core.dead_letter import MOST_DEAD_LETTERS, SOURCE
from services.core.rows import RowCodec
from services.datasets.footprints import DATASET
from services.ledger import source_progress
from services.local.stack import Stack
from services.postgres.connection import Connection, connect
from services.streams import dead_letters
from services.streams.kafka import KafkaPartitionReader
from tests.conftest import running
from tests.processes import Process, free_port
from tests.waiting import until

PARTITIONS = 3
TIME = "2026-01-31T12:00:00Z"
LARGEST_MESSAGE = 4_000_000


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running("postgres", "kafka") as stack:
        yield stack


def footprint(link: str, **fields: Any) -> bytes:
    return json.dumps({"method": "GET", "link": link, "footprint_time": TIME, **fields}).encode()


class Foreign:
    """A foreign topic, the processes that read it, and what came of it. `name` is part of every link."""

    def __init__(self, stack: Stack, *, made: bool = True) -> None:
        self.urls = stack.settings.urls()
        self.name = f"shop-{uuid.uuid4().hex[:8]}"
        self.connection: Connection = connect(self.urls["LOGPIPE_POSTGRES_URL"])
        self.kafka_url = self.urls["LOGPIPE_KAFKA_URL"]
        quiet: dict[str, str | int | float | bool] = {"bootstrap.servers": self.kafka_url, "log_level": 0}
        self.admin = AdminClient(quiet)
        self.producer = Producer({**quiet, "message.max.bytes": LARGEST_MESSAGE, "acks": "all"})
        self._links = 0
        if made:
            self.make()

    def make(self) -> None:
        made = [NewTopic(self.name, PARTITIONS, 1, config={"max.message.bytes": str(LARGEST_MESSAGE)})]
        self.admin.create_topics(made)[self.name].result()

    def delete(self) -> None:
        self.admin.delete_topics([self.name])[self.name].result()
        until(lambda: self.name not in self.admin.list_topics(timeout=10).topics)

    def good(self, **fields: Any) -> bytes:
        """A footprint with a link of its own."""
        self._links += 1
        return footprint(f"/{self.name}/{self._links}", **fields)

    def send(self, values: Sequence[bytes | None], key: bytes | None = None, partition: int | None = None) -> None:
        for number, value in enumerate(values):
            chosen = number % PARTITIONS if partition is None else partition
            self.producer.produce(self.name, value, key, chosen)
        assert self.producer.flush(60) == 0

    def process(self, *arguments: str, **environment: str) -> Process:
        port = free_port()
        settings = {**self.urls, "LOGPIPE_KAFKA_SOURCE_PORT": str(port), "LOGPIPE_INGEST_DISK_FLOOR": "0"}
        command = " ".join(["kafka-source", "--topic", self.name, "--dataset", DATASET.name, *arguments])
        return Process(command, settings | environment, port)

    def links(self) -> Counter[str]:
        query = "SELECT link FROM footprints WHERE link LIKE %s"
        return Counter(link for (link,) in self.connection.execute(query, (f"/{self.name}/%",)))

    def dead_letters(self) -> dict[tuple[int, int, int | None], int]:
        """(partition, offset, line) -> rows, of each dead letter; the topic may have some of them twice."""
        found = {}
        with closing(KafkaPartitionReader(self.kafka_url, dead_letters.TOPIC)) as reader:
            for some, _ in dead_letters.read(reader, 0):
                for _, record in some:
                    if (record.store, record.topic) == (SOURCE, self.name):
                        found[record.partition, record.offset, record.line] = record.rows
        return found

    def counts(self) -> tuple[int, int, int]:
        """Lines, rows and dead letters, as the ledger counts them."""
        for each in source_progress.counts(self.connection, DATASET.name):
            if each.topic == self.name:
                return each.lines, each.rows, each.dead_letters
        return 0, 0, 0

    def await_all(self, rows: int, dead: int, about: Process) -> None:
        """Wait until every line was taken; then each row must be stored once, and each dead letter be there."""
        until(
            lambda: self.counts()[0] >= rows + dead,
            about=lambda: f"{self.counts()} of {rows} rows and {dead} dead letters:\n{about.output()}",
        )
        assert self.counts() == (rows + dead, rows, dead)
        links = self.links()
        assert (len(links), sum(links.values())) == (rows, rows)
        assert sum(self.dead_letters().values()) == dead

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def foreign(stack: Stack) -> Iterator[Foreign]:
    with closing(Foreign(stack)) as opened:
        yield opened


HOSTILE: dict[str, bytes | None] = {
    "a tombstone": None,
    "an empty value": b"",
    "blanks": b" \r\n\t",
    "not JSON": b"hello",
    "a NUL byte": b"\x00",
    "a NUL byte in a text": footprint("/a").replace(b"/a", b"/\x00"),
    "a NUL escape": footprint("/a").replace(b"/a", b"/\\u0000"),
    "a lone surrogate": footprint("/a").replace(b"/a", b"/\\ud800"),
    "invalid UTF-8": footprint("/a").replace(b"/a", b"/\xff"),
    "foreign bytes": bytes(set(range(256)) - {ord("\n")}) * 100,
    "a list": b"[%s]" % footprint("/a"),
    "a number": b"5",
    "a long number": b"9" * 4301,
    "a field of 4,301 digits": footprint("/a", status=0).replace(b"0}", b"9" * 4301 + b"}"),
    "deeply nested": b'{"a":' * 100_000,
    "nested lists": b"[" * 900_000,
    "two objects in a line": footprint("/a") * 2,
    "a required field is missing": b'{"method":"GET","link":"/a"}',
    "an unknown field": footprint("/a", surprise=1),
    "a wrong type": footprint("/a", status="200"),
    "a time without a zone": footprint("/a").replace(b"Z", b""),
    "a time that is none": footprint("/a").replace(b"12:00", b"25:00"),
    "a time beyond 2100": footprint("/a").replace(b"2026", b"2926"),
    "a long method": footprint("/a", method="G" * 257),
    "a long row": footprint("/" + "a" * 300_000),
    "a message of the largest size": footprint("/" + "a" * (LARGEST_MESSAGE - 10_000)),
    "cut off": footprint("/a")[:-1],
    "a number beyond floats": footprint("/a", status=0).replace(b"0}", b"1e999}"),
}


def test_every_hostile_message_is_a_dead_letter_and_its_neighbours_land(foreign: Foreign) -> None:
    """Each of them stands between two good messages of its partition."""
    for hostile in HOSTILE.values():
        foreign.send([foreign.good(), hostile, foreign.good()], partition=0)
    foreign.send([foreign.good()], key=b"k" * 300_000, partition=1)
    foreign.send([b"bad"], key=b"\xff" * 300_000, partition=1)
    with foreign.process() as process:
        foreign.await_all(2 * len(HOSTILE) + 1, len(HOSTILE) + 1, process)
        places = {(partition, offset) for partition, offset, _ in foreign.dead_letters()}
        assert places == {(0, 3 * number + 1) for number in range(len(HOSTILE))} | {(1, 1)}
        published = "SELECT FROM batches WHERE dataset = 'footprints' AND published_at IS NULL LIMIT 1"
        until(lambda: foreign.connection.execute(published).fetchone() is None)
        metrics = httpx.get(f"{process.url}/metrics").text
        labels = f'{{dataset="footprints",topic="{foreign.name}"}}'
        assert f"logpipe_source_rows_total{labels} {2.0 * len(HOSTILE) + 1}" in metrics
        until(lambda: f"logpipe_source_lag_offsets{labels} 0.0" in httpx.get(f"{process.url}/metrics").text)


def verified(foreign: Foreign) -> tuple[int, dict[str, Any]]:
    """The exit code of `logpipe verify`, and what it says about the topic."""
    command = [sys.executable, "-m", "services", "verify", "--store", "postgres", "--dataset", DATASET.name, "--json"]
    done = subprocess.run(command, env={**os.environ, **foreign.urls}, capture_output=True, text=True)
    [found] = [each for each in json.loads(done.stdout)["sources"] if each["topic"] == foreign.name]
    return done.returncode, found


@pytest.mark.parametrize(
    ("change", "reverse"),
    [
        ("lines = lines + 1", "lines = lines - 1"),  # a line that became nothing
        ("rows = rows - 1, dead_letters = dead_letters + 1", "rows = rows + 1, dead_letters = dead_letters - 1"),
    ],
)
def test_verify_reconciles_the_source(foreign: Foreign, change: str, reverse: str) -> None:
    """A planted loss of a line, and of a dead letter, is found."""
    foreign.send([foreign.good(), b"bad", foreign.good(), b"{}\n\nbad\n" + foreign.good()])
    with foreign.process() as process:
        foreign.await_all(3, 3, process)
    assert verified(foreign) == (
        0,
        {
            "topic": foreign.name,
            "dataset": "footprints",
            "lines": 6,
            "rows": 3,
            "dead_letters": 3,
            "found": 3,
            "note": "",
            "ok": True,
        },
    )
    update = "UPDATE source_progress SET {} WHERE topic = %s AND partition = 0"
    foreign.connection.execute(update.format(change), (foreign.name,))
    code, found = verified(foreign)
    foreign.connection.execute(update.format(reverse), (foreign.name,))
    assert (code, found["ok"]) == (1, False)
    assert verified(foreign)[0] == 0


def test_lines_of_one_message_are_rows_and_dead_letters_of_their_own(foreign: Foreign) -> None:
    lines = [foreign.good() for _ in range(3000)]
    bad = [b"bad"] * (MOST_DEAD_LETTERS + 50)
    pretty = json.dumps(json.loads(foreign.good()), indent=2).encode()
    mixed = [*lines[:1500], b"", bad[0], *lines[1500:], b"\r", *bad[1:]]
    foreign.send([b"\n".join(mixed), pretty, b"\xef\xbb\xbf" + foreign.good()], partition=2)
    with foreign.process() as process:
        foreign.await_all(3002, len(bad), process)
    found = foreign.dead_letters()
    assert found[2, 0, 1500] == 1
    assert found[2, 0, None] == 50
    assert len(found) == MOST_DEAD_LETTERS + 1


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00:00+09:00", "2026-01-31T03:00:00+00:00"),
        ("2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00.500000+00:00"),
        ("2026-01-31T12:00:00.123456+09:00", "2026-01-31T03:00:00.123456+00:00"),
        ("2026-01-31T12:00:00.123456789Z", "2026-01-31T12:00:00.123456+00:00"),
        ("2026-01-31T12:00:00.000000999-05:30", "2026-01-31T17:30:00+00:00"),
    ],
)
def test_times_are_read_right(sent: str, stored: str) -> None:
    rows = RowCodec(DATASET).decode_object(footprint("/a").replace(TIME.encode(), sent.encode()))
    instant = instants.to_datetime(rows.columns[2][0])
    assert instant.isoformat() == stored


def test_aborted_transactions_are_not_read_and_their_offsets_are_noted(foreign: Foreign) -> None:
    writer = Producer({"bootstrap.servers": foreign.kafka_url, "transactional.id": foreign.name})
    writer.init_transactions()
    for commits in (True, False, True, False):
        writer.begin_transaction()
        writer.produce(foreign.name, foreign.good() if commits else footprint("/aborted"), None, 0)
        writer.flush()
        (writer.commit_transaction if commits else writer.abort_transaction)()
    with foreign.process() as process:
        foreign.await_all(2, 0, process)
        query = "SELECT next_offset FROM source_progress WHERE topic = %s AND partition = 0"
        until(lambda: foreign.connection.execute(query, (foreign.name,)).fetchone() == (8,))


def test_latest_begins_at_the_end_and_later_starts_go_on(foreign: Foreign) -> None:
    foreign.send([footprint("/before")] * 5)
    with foreign.process("--from latest") as process:
        query = "SELECT FROM source_progress WHERE topic = %s"
        until(lambda: foreign.connection.execute(query, (foreign.name,)).fetchone() is not None)
        foreign.send([foreign.good() for _ in range(6)])
        foreign.await_all(6, 0, process)
    foreign.send([foreign.good() for _ in range(6)])
    with foreign.process("--from latest") as process:
        foreign.await_all(12, 0, process)


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_any_moment_loses_and_doubles_nothing(foreign: Foreign, seed: int) -> None:
    chance = random.Random(seed)
    rows = dead = 0

    def send_some() -> None:
        nonlocal rows, dead
        values: list[bytes] = []
        for _ in range(chance.randrange(200, 1500)):
            kind = chance.random()
            if kind < 0.01:
                values.append(chance.choice([b"bad", b"\xff", b"{}", b""]))
                dead += 1
            elif kind < 0.03:
                values.append(b"\n".join([foreign.good(), b"bad", foreign.good()]))
                rows, dead = rows + 2, dead + 1
            else:
                values.append(foreign.good())
                rows += 1
        foreign.send(values)

    process = foreign.process(LOGPIPE_KAFKA_SOURCE_ROWS="100", LOGPIPE_KAFKA_SOURCE_SECONDS="0.05")
    with process:
        for _ in range(8):
            before = foreign.counts()[0]
            send_some()
            until(lambda: foreign.counts()[0] > before, about=process.output)  # noqa: B023 - called at once
            time.sleep(chance.random() * 0.3)
            send_some()
            process.kill()
            process.launch()
        send_some()
        foreign.await_all(rows, dead, process)


def test_dead_letters_behind_an_open_transaction_of_a_killed_process_are_read(foreign: Foreign) -> None:
    """Such a transaction hides them until the broker aborts it: here after 15 s, of ours after 60 s."""
    foreign.send([b"bad"])
    settings = {"bootstrap.servers": foreign.kafka_url, "transactional.id": foreign.name}
    killed = Producer({**settings, "transaction.timeout.ms": 15_000})
    with foreign.process() as process:
        foreign.await_all(0, 1, process)
        killed.init_transactions()
        killed.begin_transaction()
        killed.produce(dead_letters.TOPIC, b"never committed", None, dead_letters.PARTITION)
        assert killed.flush(60) == 0
        foreign.send([b"bad"])
        foreign.await_all(0, 2, process)


def test_a_topic_that_is_not_there_is_made(stack: Stack) -> None:
    with closing(Foreign(stack, made=False)) as foreign, foreign.process() as process:
        until(lambda: foreign.name in foreign.admin.list_topics(timeout=10).topics, about=process.output)
        foreign.send([foreign.good() for _ in range(30)])
        foreign.await_all(30, 0, process)


def test_a_topic_that_is_not_there_is_awaited_in_another_cluster(stack: Stack) -> None:
    with closing(Foreign(stack, made=False)) as foreign:
        process = foreign.process(LOGPIPE_KAFKA_SOURCE_URL=foreign.kafka_url)
        try:
            process.launch()
            until(lambda: f"there is no topic {foreign.name}" in process.output(), about=process.output)
            foreign.make()
            foreign.send([foreign.good() for _ in range(30)])
            foreign.await_all(30, 0, process)
        finally:
            process.stop()


def accepted_rows(process: Process) -> float:
    text = httpx.get(f"{process.url}/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("logpipe_source_rows_total{"))


def test_two_processes_share_the_partitions_and_a_rebalance_doubles_nothing(foreign: Foreign) -> None:
    with foreign.process() as first:
        foreign.send([foreign.good() for _ in range(3000)])
        with foreign.process() as second:
            foreign.send([foreign.good() for _ in range(3000)])
            assigned = "partitions assigned"
            until(lambda: assigned in second.output(), about=second.output)
            foreign.send([foreign.good() for _ in range(3000)])
            foreign.await_all(9000, 0, first)
            assert all(accepted_rows(each) > 0 for each in (first, second))
            foreign.send([foreign.good() for _ in range(300)])
        foreign.send([foreign.good() for _ in range(3000)])
        foreign.await_all(12_300, 0, first)


def test_a_zombie_stores_nothing(foreign: Foreign) -> None:
    """It holds messages while it is suspended, and another process takes them meanwhile."""
    with foreign.process(LOGPIPE_KAFKA_SOURCE_SECONDS="2") as zombie:
        foreign.send([foreign.good() for _ in range(30)])
        foreign.await_all(30, 0, zombie)
        foreign.send([foreign.good() for _ in range(30)])
        time.sleep(0.5)
        zombie.signal(signal.SIGSTOP)
        assert foreign.counts()[0] == 30  # it held them
        with foreign.process() as other:
            foreign.await_all(60, 0, other)
            zombie.signal(signal.SIGCONT)
            foreign.send([foreign.good() for _ in range(30)])
            foreign.await_all(90, 0, other)
        foreign.send([foreign.good() for _ in range(30)])
        foreign.await_all(120, 0, zombie)


def test_a_topic_created_again_is_refused_until_an_operator_resumes(foreign: Foreign) -> None:
    with foreign.process() as process:
        foreign.send([foreign.good() for _ in range(30)])
        foreign.await_all(30, 0, process)
        foreign.delete()
        foreign.make()
        foreign.send([foreign.good() for _ in range(60)])

        def refused() -> bool:
            reply = httpx.get(f"{process.url}/readyz", timeout=5)
            return reply.status_code == 503 and "created again" in reply.text and "--resume" in reply.text

        until(refused, about=process.output)
        assert foreign.counts() == (30, 30, 0)
    command = ["kafka-source", "--topic", foreign.name, "--dataset", DATASET.name, "--resume"]
    done = subprocess.run(
        [sys.executable, "-m", "services", *command], env={**os.environ, **foreign.urls}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"partition {partition}: was read up to 10, goes on at 0" for partition in range(PARTITIONS)
    ]
    with foreign.process() as process:
        foreign.await_all(90, 0, process)


def test_a_topic_of_the_pipeline_itself_is_refused(foreign: Foreign) -> None:
    command = [sys.executable, "-m", "services", "kafka-source", "--dataset", "logs", "--topic", "logs.raw"]
    done = subprocess.run(command, env={**os.environ, **foreign.urls}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "a topic of the pipeline itself" in done.stderr


def test_a_footprint_reaches_every_store() -> None:
    """From the foreign topic into PostgreSQL, ClickHouse and the lake; `logpipe verify` compares all of them."""
    with (
        running("postgres", "kafka", "clickhouse", "namenode", "datanode") as stack,
        closing(Foreign(stack)) as foreign,
    ):
        foreign.send([foreign.good(service=f"s{number % 7}") for number in range(2000)] + [b"bad"])
        port, other = free_port(), free_port()
        command = f"stream-to-store --dataset {DATASET.name} --store"
        with (
            foreign.process() as source,
            Process(f"{command} clickhouse", {**foreign.urls, "LOGPIPE_STREAM_TO_STORE_PORT": str(port)}, port),
            Process(f"{command} lake", {**foreign.urls, "LOGPIPE_STREAM_TO_STORE_PORT": str(other)}, other),
        ):
            foreign.await_all(2000, 1, source)
            arguments = ["verify", "--all", "--wait", "120", "--dataset", DATASET.name, "--json"]
            done = subprocess.run(
                [sys.executable, "-m", "services", *arguments],
                env={**os.environ, **foreign.urls},
                capture_output=True,
                text=True,
            )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    found = {result["store"]: (result["found"], result["ok"]) for result in report["results"]}
    assert found == dict.fromkeys(["postgres", "clickhouse", "lake"], (2000, True))
    assert [source["ok"] for source in report["sources"]] == [True]
