"""The Spark job on a real Kafka and HDFS: every row once, whatever is killed, lost or poisoned.

A start of Spark takes some ten seconds, so this is one story, told by tests that stand on each other.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import STDOUT, run
from sys import executable
from typing import Any

import httpx
import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from deltalake import DeltaTable, QueryBuilder
from hdfs_native import Client, WriteOptions

from services.core import kafka_value
from services.core.dead_letter import DeadLettered
from services.core.ids import MAX_BATCH, first_id
from services.core.instants import DAY
from services.core.ports import Block, OutgoingMessage
from services.core.rows import Row, RowCodec, Rows, checksum
from services.datasets.logs import DATASET
from services.lake.embedded import EmbeddedReader
from services.lake.refill import RefillWriter
from services.lake.table import rejects_uri
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.runtime.settings import LakeSettings
from services.streams.kafka import KafkaPartitionReader, KafkaProducer
from services.streams.kafka_client import config, describe
from services.streams.topics import ensure_topics
from spark_jobs.checkpoint import CheckpointFolder
from tests.processes import Process, free_port
from tests.waiting import until

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

CREATED = 1_790_000_000_000_000
PARTITIONS = 4
ROWS = 50  # of a batch
SCRATCH_TOPIC = f"warm-up-{DATASET.name}"
SCRATCH = f"/lake/{SCRATCH_TOPIC}"


@dataclass
class World:
    environment: dict[str, str]
    settings: LakeSettings
    kafka_url: str
    codec: RowCodec = field(default_factory=lambda: RowCodec(DATASET))
    accepted: dict[int, list[Row]] = field(default_factory=dict)
    poisoned: list[DeadLettered] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)  # batches that no topic has

    def __post_init__(self) -> None:
        self.reader = EmbeddedReader(self.settings)
        self.checkpoint = CheckpointFolder(self.settings, DATASET.name, DATASET.topic)
        self.topic = KafkaPartitionReader(self.kafka_url, DATASET.topic)
        port = free_port()
        self.environment |= {"LOGPIPE_STREAM_TO_LAKE_PORT": str(port)}
        self.process = Process(f"stream-to-lake --dataset {DATASET.name}", self.environment, port)

    def batch(self) -> list[OutgoingMessage]:
        """The messages of the next batch."""
        made = kafka_value.encode(
            DATASET, self.next_id, CREATED, Rows.of(self.rows), self.codec.encode(self.rows), PARTITIONS
        )
        return [message for message in made if message.topic == DATASET.topic]

    @property
    def next_id(self) -> int:
        return max(self.accepted, default=0) + 2

    @property
    def rows(self) -> list[Row]:
        first = first_id(self.next_id)
        return [
            (first + n, CREATED, 1_000_000 * n, "INFO", f"service-{n % 7}", "", f"é {n}", '{"a": 1.0, "a": "\\u00e9"}')
            for n in range(ROWS)
        ]

    def publish(self, batches: int) -> None:
        producer = KafkaProducer(self.kafka_url, "test")
        for _ in range(batches):
            producer.publish(self.batch())
            self.accepted[self.next_id] = self.rows
        producer.close()

    def abort(self) -> None:
        """Leave a batch in the topic whose transaction was aborted."""
        producer = Producer({"bootstrap.servers": self.kafka_url, "transactional.id": "test"})
        producer.init_transactions(10)
        producer.begin_transaction()
        for message in self.batch():
            producer.produce(DATASET.topic, message.value, message.key, message.partition)
        producer.flush(10)
        producer.abort_transaction(10)

    def ends(self) -> dict[int, int]:
        return {partition: end for partition, (_, end) in self.topic.bounds().items()}

    def drained(self) -> bool:
        return self.reader.position(DATASET).offsets == self.ends()

    def assert_exact(self) -> None:
        assert self.reader.position(DATASET).offsets == self.ends()
        wanted = [(batch_id, len(rows), len(rows)) for batch_id, rows in self.accepted.items()]
        assert list(self.reader.counts(DATASET, 0, 10**9)) == wanted
        found = checksum(self.codec.encode(self.reader.rows(DATASET, 0, 10**9)))
        assert found == checksum(self.codec.encode(row for rows in self.accepted.values() for row in rows))
        assert self.rejected() == self.poisoned

    def rejected(self) -> list[DeadLettered]:
        return sorted(self.reader.rejected(DATASET, 0, MAX_BATCH), key=lambda reject: (reject[2], reject[1] or 0))

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.process.url}/metrics", timeout=60).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))

    def logpipe(self, arguments: str) -> tuple[int, str]:
        with tempfile.TemporaryFile() as output:
            command = [executable, "-m", "services", *arguments.split()]
            ended = run(
                command, env=os.environ | self.environment, stdout=output, stderr=STDOUT, timeout=60, check=False
            )
            output.seek(0)
            return ended.returncode, output.read().decode()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="logpipe-", ignore_cleanup_errors=True) as folder:
        settings = LocalSettings.on_free_ports(Path(folder))
        with Stack(settings, ("kafka", "namenode", "datanode")) as stack:
            environment = dict(stack.program("stream-to-lake").environment) | {
                "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1",  # these runs are too short to be worth optimising
                "LOGPIPE_LAKE_TRIGGER_SECONDS": "0.5",
                "LOGPIPE_LAKE_ROWS_PER_TRIGGER": "1000",
                "LOGPIPE_LAKE_WARM_UP_SECONDS": "15",
            }
            urls = settings.urls()
            kafka_url = urls["LOGPIPE_KAFKA_URL"]
            ensure_topics(kafka_url, {DATASET.topic: PARTITIONS, "alerts.realtime": PARTITIONS}, 1)
            found = World(environment, LakeSettings(hdfs_url=urls["LOGPIPE_HDFS_URL"]), kafka_url)
            yield found
            found.process.stop()


def mid_batch(world: World) -> bool:
    """A batch is planned, and not yet marked as done."""
    found = world.checkpoint.load()
    return found is not None and max(found.ends, default=-1) > found.committed


def test_a_driver_killed_in_the_middle_of_a_batch_twice_stores_every_row_once(world: World) -> None:
    world.publish(20)
    for _ in range(2):
        world.process.launch()
        until(lambda: mid_batch(world), about=world.process.output)
        world.process.kill()
        world.abort()
        world.publish(20)
    world.process.start()
    until(world.drained, about=world.process.output)
    world.assert_exact()


def test_what_is_not_sound_is_kept_apart_and_its_neighbours_are_stored(world: World) -> None:
    batch_id, rows = world.next_id, world.rows
    lines = world.codec.encode(rows)
    headers = {"created_at": b"%d" % CREATED, "rows": b"%d" % ROWS}
    key = b"%d:0" % batch_id
    spoiled = [*lines[:10], b"", b'{"id": "x"}', b'{"id": 1}', lines[13].replace(b"INFO", b"\xff"), *lines[14:]]
    partly = (
        b"\n".join([*lines[:10], b"", b'{"id": "x"}', lines[12].replace(b'"level"', b'"lvl"'), *lines[13:]]) + b"\n"
    )
    whole = [
        OutgoingMessage(DATASET.topic, 0, b"no key", b"a\nb\n", headers),
        OutgoingMessage(DATASET.topic, 1, key, b"a\nb\n", {}),
        OutgoingMessage(DATASET.topic, 2, key, b"a\nb\nc\n", headers),
        OutgoingMessage(DATASET.topic, 3, key, b"\n".join(spoiled) + b"\n", headers),
    ]
    producer = KafkaProducer(world.kafka_url, "test")
    delivered = producer.publish([*whole, OutgoingMessage(DATASET.topic, 0, key, partly, headers)])
    producer.close()
    world.accepted[batch_id] = [row for n, row in enumerate(rows) if n not in (10, 11, 12)]
    rejects = ((None, 1), (None, 1), (rows[12][0], 1), (None, 2), (None, 3), (None, ROWS))
    world.poisoned = [DeadLettered(batch_id, row_id, count) for row_id, count in rejects]
    before = world.metric("logpipe_sink_rows_total")
    until(world.drained, about=world.process.output)
    until(lambda: world.rejected() != [], about=world.process.output)
    world.assert_exact()
    until(lambda: world.metric("logpipe_sink_rows_total") - before == ROWS - 3, about=world.process.output)
    assert world.metric("logpipe_sink_dead_letters_total") == len(whole) + 3
    found = rejected(world)
    at: dict[tuple[object, object], int] = {
        (part.partition, part.offset): index for index, part in enumerate(delivered)
    }
    assert [(at[r["partition"], r["offset"]], r["line"], r["id"], r["reason"], r["value"]) for r in found] == [
        (0, None, None, "its key is not <batch>:<part>", b"a\nb\n"),
        (1, None, None, "a header, created_at or rows, is missing or not a number", b"a\nb\n"),
        (2, None, None, "its header announces another number of lines", b"a\nb\nc\n"),
        (3, None, None, "it is not valid UTF-8", whole[3].value),
        (4, 10, None, "not a JSON object whose values are of the right types", b""),
        (4, 11, None, "not a JSON object whose values are of the right types", b'{"id": "x"}'),
        (4, 12, rows[12][0], "level is missing", lines[12].replace(b'"level"', b'"lvl"')),
    ]


def rejected(world: World) -> list[dict[str, Any]]:
    engine = QueryBuilder().register("t", DeltaTable(rejects_uri(world.settings, DATASET)))
    query = 'SELECT * FROM t ORDER BY line IS NOT NULL, "partition", "offset", line'
    rows: list[dict[str, Any]] = pa.table(engine.execute(query).read_all()).to_pylist()
    return rows


def test_a_replay_writes_beside_the_driver_which_goes_on_from_its_own_position(world: World) -> None:
    writer = RefillWriter(world.settings)
    writer.prepare(DATASET)
    writer.begin(DATASET, world.topic.topic_id(), world.topic.bounds())
    for turn in range(4):
        batch_id, rows = world.next_id, world.rows
        world.replayed.append(batch_id)
        world.accepted[batch_id] = rows
        world.publish(3)
        if turn == 2:
            until(lambda: mid_batch(world), about=world.process.output)
            world.process.kill()
        lines = kafka_value.join(world.codec.encode(rows))
        block = Block(DATASET, "replay:1", 0, batch_id, batch_id, CREATED // DAY, ROWS, lines)
        assert writer.complete([block]) == []
        writer.write([block])
        if turn == 2:
            world.process.start()
    until(world.drained, about=world.process.output)
    world.assert_exact()


def test_damage_that_loses_nothing_is_mended(world: World) -> None:
    """The driver died while it planned a batch, and the mark of the batch before was lost, too."""
    assert world.process.stop() == 0
    found = world.checkpoint.load()
    assert found is not None
    empty(world, f"offsets/{found.committed + 1}")
    empty(world, f"commits/{found.committed}")
    world.publish(5)
    world.process.start()
    until(world.drained, about=world.process.output)
    assert "damaged files of the checkpoint removed" in world.process.output()
    world.assert_exact()


def test_damage_that_may_lose_rows_is_refused_in_one_sentence(world: World) -> None:
    assert world.process.stop() == 0
    found = world.checkpoint.load()
    assert found is not None
    empty(world, f"offsets/{found.committed}")
    code, output = world.logpipe(f"stream-to-lake --dataset {DATASET.name}")
    assert code == 1
    assert f"logs: its checkpoint is damaged: offsets/{found.committed} cannot be read." in output
    assert "logpipe stream-to-lake --resume logs" in output
    assert "Traceback" not in output


def empty(world: World, name: str) -> None:
    Client(world.settings.hdfs_url).create(f"/lake/checkpoints/logs/{name}", WriteOptions(overwrite=True)).close()


def test_it_refuses_to_go_on_without_its_checkpoint(world: World) -> None:
    world.publish(5)
    Client(world.settings.hdfs_url).delete("/lake/checkpoints/logs", recursive=True)
    code, output = world.logpipe(f"stream-to-lake --dataset {DATASET.name}")
    assert code == 1
    assert "logs: its checkpoint is missing, but its table has rows." in output
    assert "logpipe stream-to-lake --resume logs" in output


def test_it_resumes_where_the_table_stands(world: World) -> None:
    code, output = world.logpipe("stream-to-lake --resume logs")
    assert code == 0, output
    assert world.checkpoint.load() is None
    world.publish(5)
    world.process.start()
    until(world.drained, about=world.process.output)
    world.assert_exact()


def test_it_is_rebuilt_from_the_topic(world: World) -> None:
    assert world.process.stop() == 0
    code, output = world.logpipe("stream-to-lake --rebuild logs --yes")
    assert code == 0, output
    assert list(world.reader.rows(DATASET, 0, 10**9)) == []
    assert not world.rejected()
    for batch_id in world.replayed:
        del world.accepted[batch_id]
    world.process.start()
    until(world.drained, about=world.process.output)
    until(lambda: world.rejected() == world.poisoned, about=world.process.output)
    world.assert_exact()


def test_a_killed_warm_up_leaves_a_scratch_folder_and_topic_that_the_next_start_deletes(world: World) -> None:
    assert world.process.stop() == 0
    world.process.launch()
    until(lambda: has_scratch(world), about=world.process.output)
    until(lambda: has_scratch_topic(world), about=world.process.output)
    world.process.kill()
    assert has_scratch(world)
    world.process.start()
    assert '"warmed up"' in world.process.output()
    # On a slow machine the last round outlives the limit.
    until(lambda: not has_scratch(world) and not has_scratch_topic(world), about=world.process.output)
    assert "warm-up failed" not in world.process.output()
    world.assert_exact()


def test_a_start_behind_its_topic_does_not_warm_up_and_deletes_the_scratch_folder_too(world: World) -> None:
    assert world.process.stop() == 0
    Client(world.settings.hdfs_url).create(f"{SCRATCH}/left", WriteOptions(overwrite=True)).close()
    world.publish(5)
    world.process.start()
    assert not has_scratch(world)  # deleted before the stream starts
    assert '"warmed up"' not in world.process.output()
    until(world.drained, about=world.process.output)
    world.assert_exact()


def has_scratch_topic(world: World) -> bool:
    return describe(AdminClient(config(world.kafka_url)), SCRATCH_TOPIC) is not None


def has_scratch(world: World) -> bool:
    try:
        Client(world.settings.hdfs_url).get_file_info(SCRATCH)
    except FileNotFoundError:
        return False
    return True
