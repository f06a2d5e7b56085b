"""What topics are made with, and what is corrected or refused in a topic that is there."""

import time
import uuid

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from services.core.errors import NeedsOperator
from services.runtime.settings import KafkaSettings
from services.streams import topics
from services.streams.topics import DEAD_LETTERS
from tests.waiting import until

HOUR_MS = 3_600_000


@pytest.fixture
def admin(kafka_url: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka_url})


@pytest.fixture
def settings(kafka_url: str) -> KafkaSettings:
    return KafkaSettings(kafka_url=kafka_url, kafka_partitions=2, kafka_retention_hours=48)


@pytest.fixture
def name() -> str:
    return f"topics.{uuid.uuid4()}"


def make(admin: AdminClient, name: str, **values: str) -> None:
    configured = {key.replace("_", "."): value for key, value in values.items()}
    admin.create_topics([NewTopic(name, 2, 1, config=configured)])[name].result()
    comes_to(admin, name, **configured)


def comes_to(admin: AdminClient, name: str, **values: str) -> None:
    """The broker learns of a change a moment after the controller has made it."""
    until(lambda: values.items() <= found(admin, name).items(), about=lambda: found(admin, name))


def found(admin: AdminClient, name: str) -> dict[str, str]:
    try:
        return topics._configuration(admin, name)
    except KafkaException:
        return {}  # it is not there yet


def test_a_topic_is_made_by_its_description(admin: AdminClient, settings: KafkaSettings, name: str) -> None:
    topics.ensure(settings, [name])
    values = found(admin, name)
    assert (values["retention.ms"], values["retention.bytes"]) == (str(48 * HOUR_MS), "-1")
    assert (values["cleanup.policy"], values["min.insync.replicas"]) == ("delete", "1")
    assert int(values["max.message.bytes"]) > 1_000_000


def test_dead_letters_have_no_limit(admin: AdminClient, settings: KafkaSettings) -> None:
    topics.ensure(settings, [DEAD_LETTERS])
    assert topics.WantedTopic(DEAD_LETTERS, 1, 1, None).corrections(found(admin, DEAD_LETTERS)) == {}
    admin.delete_topics([DEAD_LETTERS])[DEAD_LETTERS].result()
    while DEAD_LETTERS in admin.list_topics(timeout=60).topics:
        time.sleep(0.05)
    make(admin, DEAD_LETTERS, retention_ms="604800000", retention_bytes="1000000")
    topics.ensure(settings, [DEAD_LETTERS])
    comes_to(admin, DEAD_LETTERS, **{"retention.ms": "-1", "retention.bytes": "-1"})


@pytest.mark.parametrize(("there", "then"), [(1, 48), (72, 72)])
def test_values_that_would_lose_messages_are_corrected(
    admin: AdminClient, settings: KafkaSettings, name: str, there: int, then: int
) -> None:
    """A longer retention than the setting is left: to shorten it would delete messages."""
    hours = str(there * HOUR_MS)
    make(
        admin,
        name,
        cleanup_policy="compact",
        max_message_bytes="1000",
        retention_ms=hours,
        retention_bytes="1073741824",
    )
    topics.ensure(settings, [name])
    then_ms = str(then * HOUR_MS)
    comes_to(admin, name, **{"cleanup.policy": "delete", "retention.ms": then_ms, "retention.bytes": "-1"})
    assert int(found(admin, name)["max.message.bytes"]) > 1_000_000


def test_a_topic_that_nothing_can_be_published_to_is_refused(
    admin: AdminClient, settings: KafkaSettings, name: str
) -> None:
    make(admin, name, min_insync_replicas="2")
    with pytest.raises(NeedsOperator, match=r"min\.insync\.replicas=1"):
        topics.ensure(settings, [name])


def test_fewer_partitions_than_are_to_be_used_are_refused(
    admin: AdminClient, settings: KafkaSettings, name: str
) -> None:
    make(admin, name)
    more = settings.model_copy(update={"kafka_partitions": 3})
    with pytest.raises(NeedsOperator, match="LOGPIPE_KAFKA_PARTITIONS=2"):
        topics.ensure(more, [name])
