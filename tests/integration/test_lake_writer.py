"""stream_to_store into the lake, with a real Kafka and HDFS: kill -9 in the middle, poison, and whose the table is."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from subprocess import run
from sys import executable

import pytest

from services.core import kafka_value
from services.core.ids import first_id
from services.core.ports import OutgoingMessage
from services.core.rows import Row, RowCodec, Rows, checksum
from services.datasets.logs import DATASET
from services.lake.embedded import EmbeddedReader
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.runtime.settings import LakeSettings
from services.streams import kafka
from services.streams.dead_letters import TOPIC
from services.streams.topics import ensure_topics
from tests.processes import Process, free_port
from tests.waiting import until

PARTITIONS = 4
BATCH_ROWS = 1000
NOON = 20_000 * 86_400_000_000 + 43_200_000_000
CODEC = RowCodec(DATASET)


@pytest.fixture
def urls(stack_folder: Path) -> Iterator[dict[str, str]]:
    with Stack(LocalSettings.on_free_ports(stack_folder), ("kafka", "namenode", "datanode")) as stack:
        yield stack.settings.urls()


def batch_rows(batch: int) -> list[Row]:
    return [
        (first_id(batch) + n, NOON, NOON + n, "INFO", f"service-{n % 50}", "worker-1", f"é {n}", '{"a":1.0}')
        for n in range(BATCH_ROWS)
    ]


def batch_messages(batch: int) -> list[OutgoingMessage]:
    rows = batch_rows(batch)
    own = kafka_value.encode(DATASET, batch, NOON, Rows.of(rows), CODEC.encode(rows), PARTITIONS)
    return [message for message in own if message.topic == DATASET.topic]


def test_killed_twice_it_stores_every_row_once_and_the_table_is_its_own(urls: dict[str, str]) -> None:
    kafka_url = urls["LOGPIPE_KAFKA_URL"]
    ensure_topics(kafka_url, {DATASET.topic: PARTITIONS}, 1)
    port = free_port()
    environment = {
        **urls,
        "LOGPIPE_STREAM_TO_STORE_PORT": str(port),
        "LOGPIPE_KAFKA_PARTITIONS": str(PARTITIONS),
        "LOGPIPE_BLOCK_ROWS": "2000",  # many commits, so that the kill finds one under way
        "LOGPIPE_BLOCK_SECONDS": "0.2",
    }
    reader = EmbeddedReader(LakeSettings(hdfs_url=urls["LOGPIPE_HDFS_URL"]))
    process = Process(f"stream-to-store --store lake --dataset {DATASET.name}", environment, port)
    poison = OutgoingMessage(DATASET.topic, 0, b"no batch", b"{}\n", {"created_at": b"5", "rows": b"1"})

    def stored() -> int:
        return sum(rows for _, rows, _ in reader.counts(DATASET, 0, 1 << 30))

    def drained() -> bool:
        with closing(kafka.KafkaPartitionReader(kafka_url, DATASET.topic)) as topic:
            return reader.position(DATASET).offsets == {
                partition: end for partition, (_, end) in topic.bounds().items()
            }

    with closing(kafka.KafkaProducer(kafka_url, "test")) as producer, process:
        for first, kill_at in ((1, 5_000), (31, 35_000)):
            for start in range(first, first + 30, 10):
                producer.publish([message for batch in range(start, start + 10) for message in batch_messages(batch)])
            producer.publish([poison])
            until(lambda at=kill_at: stored() >= at, about=process.output)  # type: ignore[misc]
            process.kill()
            process.start()
        until(drained, about=process.output)
        assert list(reader.counts(DATASET, 0, 1 << 30)) == [(b, BATCH_ROWS, BATCH_ROWS) for b in range(1, 61)]
        accepted = (row for batch in range(1, 61) for row in batch_rows(batch))
        assert checksum(CODEC.encode(reader.rows(DATASET, 0, 1 << 30))) == checksum(CODEC.encode(accepted))
        with closing(kafka.KafkaPartitionReader(kafka_url, TOPIC)) as topic:
            assert topic.bounds()[0][1] > 0
        process.stop()

    code, output = logpipe(f"stream-to-lake --dataset {DATASET.name}", environment)
    assert code == 1
    assert "logs: its table is filled by the embedded writer" in output
    assert "logpipe stream-to-lake --resume logs" in output
    assert logpipe(f"stream-to-lake --resume {DATASET.name}", environment)[0] == 0
    assert drained()


def logpipe(arguments: str, environment: dict[str, str]) -> tuple[int, str]:
    ended = run(
        [executable, "-m", "services", *arguments.split()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr
