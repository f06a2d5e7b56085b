"""The topics of the pipeline, described once: their partitions, and the configuration that they must have.

A missing topic is created by its description. In an existing topic, values are corrected where that loses nothing. A
topic to which nothing can be published is refused with the command that mends it.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import stamina
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    TopicDescription,
)

from services.core.errors import NeedsOperator, StoreDown
from services.runtime import logs
from services.runtime.settings import KafkaSettings
from services.streams.kafka_client import MESSAGE_TIMEOUT, NAME, REQUEST_TIMEOUT, config, describe, translated

DEAD_LETTERS = "dead-letter"
RETENTION_HOURS = 168

_NO_LIMIT = -1
_HOUR_MS = 3_600_000
_LARGEST_MESSAGE = 1_048_588  # bytes of one batch of messages; the producer makes batches of up to 1,000,000
_log = logs.get("topics")


class WantedTopic(NamedTuple):
    """The description of a topic. `retention_hours`: None for no limit of time. No topic has a limit of size."""

    name: str
    partitions: int
    replication: int
    retention_hours: int | None

    @property
    def retention_ms(self) -> int:
        return _NO_LIMIT if self.retention_hours is None else self.retention_hours * _HOUR_MS

    def settings(self) -> dict[str, str]:
        """Return the configuration of a new topic. acks=all and two replicas survive the loss of a broker."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": str(_NO_LIMIT),
            "max.message.bytes": str(_LARGEST_MESSAGE),
            "min.insync.replicas": str(max(1, self.replication - 1)),
        }

    def corrections(self, found: Mapping[str, str]) -> dict[str, str]:
        """Return the values that must change in an existing topic. None of these changes deletes a message."""
        wanted = {}
        if found["cleanup.policy"] != "delete":  # compaction would drop messages that share a key
            wanted["cleanup.policy"] = "delete"
        if int(found["max.message.bytes"]) < _LARGEST_MESSAGE:
            wanted["max.message.bytes"] = str(_LARGEST_MESSAGE)
        if _is_shorter(int(found["retention.ms"]), self.retention_ms):
            wanted["retention.ms"] = str(self.retention_ms)
        if int(found["retention.bytes"]) != _NO_LIMIT:  # at full load a gigabyte is minutes
            wanted["retention.bytes"] = str(_NO_LIMIT)
        return wanted


def ensure(settings: KafkaSettings, names: Iterable[str]) -> None:
    """Create or check these topics as the settings say. Raises StoreDown, or NeedsOperator for a wrong topic."""
    wanted = {name: 1 if name == DEAD_LETTERS else settings.kafka_partitions for name in names}
    ensure_topics(settings.kafka_url, wanted, settings.kafka_replication, settings.kafka_retention_hours)


def ensure_topics(
    url: str, topics: Mapping[str, int], replication: int, retention_hours: int = RETENTION_HOURS
) -> None:
    """Create or check `topics` (name -> partitions) as `ensure` does. Returns when all can be used."""
    wanted = [
        WantedTopic(name, partitions, replication, None if name == DEAD_LETTERS else retention_hours)
        for name, partitions in topics.items()
    ]
    admin = AdminClient(config(url))
    with translated():
        present = {topic.name: describe(admin, topic.name) for topic in wanted}
        _create(admin, [topic for topic in wanted if present[topic.name] is None])
        for topic in wanted:
            if (described := present[topic.name]) is not None:
                _check(admin, topic, described)
        _await_leaders(admin, [topic.name for topic in wanted])


def delete(url: str, name: str) -> None:
    """Delete a topic with its messages, if there is one. Blocks. Raises StoreDown. For scratch topics."""
    admin = AdminClient(config(url))
    with translated():
        try:
            admin.delete_topics([name], request_timeout=REQUEST_TIMEOUT)[name].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise


class ExistingTopic(NamedTuple):
    """A topic that exists. `messages`: whether it has, or had, any messages."""

    topic_id: str
    messages: bool


def existing_topics(url: str, names: Iterable[str]) -> dict[str, ExistingTopic]:
    """Return the existing ones of these topics, by name. Raises StoreDown."""
    admin = AdminClient(config(url))
    found = {}
    with translated():
        for name in names:
            if (described := describe(admin, name)) is not None:
                latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
                wanted = {TopicPartition(name, partition.id): latest for partition in described.partitions}
                ends = admin.list_offsets(wanted, request_timeout=REQUEST_TIMEOUT).values()
                has_messages = any(end.result().offset > 0 for end in ends)
                found[name] = ExistingTopic(str(described.topic_id), has_messages)
    return found


def _create(admin: AdminClient, missing: list[WantedTopic]) -> None:
    made = [NewTopic(topic.name, topic.partitions, topic.replication, config=topic.settings()) for topic in missing]
    for future in admin.create_topics(made, request_timeout=REQUEST_TIMEOUT).values() if made else ():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def _check(admin: AdminClient, topic: WantedTopic, described: TopicDescription) -> None:
    count = len(described.partitions)
    if 0 < count < topic.partitions:
        raise NeedsOperator(
            f"topic {topic.name} has {count} partitions and {topic.partitions} are to be used: add partitions"
            f" (`kafka-topics.sh --bootstrap-server ADDRESS --alter --topic {topic.name}"
            f" --partitions {topic.partitions}`), or set"
            f" LOGPIPE_KAFKA_PARTITIONS={count}"
        )
    found = _configuration(admin, topic.name)
    replicas = min((len(partition.replicas) for partition in described.partitions), default=topic.replication)
    if int(found["min.insync.replicas"]) > replicas:
        raise NeedsOperator(
            f"topic {topic.name} has {replicas} replicas and min.insync.replicas={found['min.insync.replicas']}, so"
            f" that nothing can be published: `kafka-configs.sh --bootstrap-server ADDRESS --alter --entity-type topics"
            f" --entity-name {topic.name}"
            f" --add-config min.insync.replicas={replicas}`, or add replicas"
        )
    if changes := topic.corrections(found):
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in changes.items()
        ]
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic.name, incremental_configs=entries)
        admin.incremental_alter_configs([resource], request_timeout=REQUEST_TIMEOUT)[resource].result()
        _log.warning("topic configuration corrected", topic=topic.name, changed=changes)


def _configuration(admin: AdminClient, name: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    entries = admin.describe_configs([resource], request_timeout=REQUEST_TIMEOUT)[resource].result()
    return {entry.name: entry.value for entry in entries.values()}


@stamina.retry(on=StoreDown, attempts=None, timeout=MESSAGE_TIMEOUT, wait_initial=0.05, wait_max=0.5, wait_jitter=0.0)
def _await_leaders(admin: AdminClient, names: list[str]) -> None:
    if leaderless := [name for name in names if not _usable(describe(admin, name))]:
        raise StoreDown(NAME, f"topics {', '.join(leaderless)} have no leader")


def _usable(topic: TopicDescription | None) -> bool:
    return topic is not None and all(p.leader is not None and p.leader.id >= 0 for p in topic.partitions)


def _is_shorter(found: int, wanted: int) -> bool:
    return found != _NO_LIMIT and (wanted == _NO_LIMIT or found < wanted)
