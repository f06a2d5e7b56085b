"""The middleware's producer and a Kafka that acknowledges too late, or has lost messages."""

import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from request_footprints import counts
from request_footprints.footprint import Note
from request_footprints.kafka import KafkaProducer
from request_footprints.recorder import Recorder
from request_footprints.settings import Settings

from services.local.stack import Stack
from services.streams.kafka import KafkaPartitionReader
from services.streams.topics import ensure_topics
from tests.conftest import running
from tests.waiting import until

IMPATIENT = {"socket.timeout.ms": "1000", "request.timeout.ms": "1000"}
PAUSED_SECONDS = 5.0


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running("kafka") as stack:
        yield stack


class Topic:
    """A topic with one partition, and the names that the middleware's settings need."""

    def __init__(self, stack: Stack) -> None:
        self.url = stack.settings.urls()["LOGPIPE_KAFKA_URL"]
        self.name = f"footprints-{uuid.uuid4().hex}"
        ensure_topics(self.url, {self.name: 1}, 1)

    def settings(self, kafka_config: Mapping[str, str] = {}) -> Settings:
        return Settings(kafka=self.url, topic=self.name, service=self.name, kafka_config=kafka_config)

    def messages(self) -> int:
        with closing(KafkaPartitionReader(self.url, self.name)) as reader:
            return reader.bounds()[0][1]


@pytest.fixture
def topic(stack: Stack) -> Topic:
    return Topic(stack)


@pytest.fixture
def record(topic: Topic) -> Iterator[Callable[[], None]]:
    """Records a request by the thread of the middleware."""
    recorder = Recorder(topic.settings(), KafkaProducer)
    note: Note = (time.time(), "GET", "/", 200, 0.001, None, None, "", None)
    yield lambda: recorder.record(note)
    recorder.close()


def test_a_message_that_is_sent_again_is_stored_once(stack: Stack, topic: Topic) -> None:
    producer = KafkaProducer(topic.settings(IMPATIENT))
    producer.send([(b"first", b"{}")])
    until(lambda: is_done(producer))
    broker = stack.states()["kafka"].pid
    os.kill(broker, signal.SIGSTOP)
    try:
        producer.send([(b"second", b"{}")])
        time.sleep(PAUSED_SECONDS)  # the producer sends the message over a new connection again and again
    finally:
        os.kill(broker, signal.SIGCONT)
    until(lambda: is_done(producer))
    producer.send([(b"third", b"{}")])
    until(lambda: is_done(producer))
    producer.close()
    assert producer.failures() == 0
    assert topic.messages() == 3


def is_done(producer: KafkaProducer) -> bool:
    producer.poll()
    return producer.waiting() == 0


def test_a_kafka_that_lost_messages_does_not_end_the_recording(
    stack: Stack, topic: Topic, record: Callable[[], None], tmp_path: Path
) -> None:
    """Kafka refuses the next message of an idempotent producer whose last messages it has lost."""
    record()
    until(lambda: counts(topic.name).delivered == 1)
    with stopped_kafka(stack, topic) as folder:
        shutil.copytree(folder, tmp_path / "kept")
    for recorded in (2, 3, 4):
        record()
        until(lambda recorded=recorded: counts(topic.name).delivered == recorded)  # type: ignore[misc]
    with stopped_kafka(stack, topic) as folder:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
    assert topic.messages() == 1
    for recorded in (5, 6):
        record()
        until(lambda recorded=recorded: known(topic) == recorded)  # type: ignore[misc]
    found = counts(topic.name)
    assert (found.delivered, found.undelivered) == (5, 1), found
    assert topic.messages() == 2


def known(topic: Topic) -> int:
    """Return of how many footprints it is known what became of them."""
    found = counts(topic.name)
    return found.delivered + found.dropped


@contextmanager
def stopped_kafka(stack: Stack, topic: Topic) -> Iterator[Path]:
    """Stop Kafka, yield the folder of the topic's partition, and start Kafka again."""
    stack.supervisor.stop("kafka")
    yield stack.folder / "kafka" / "data" / f"{topic.name}-0"
    stack.up()
