"""A broker in memory for tests: transactions, fencing, control records, retention, consumer groups.

tests/contract/test_streams.py holds it to the real one.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock

from services.core.errors import Fenced, NeedsOperator, StoreDown
from services.core.ledger import Part
from services.core.ports import Message, OutgoingMessage

MAX_MESSAGE_BYTES = 1_000_000


@dataclass
class _Topic:
    """`logs`: per partition the messages by offset; None is a control record."""

    logs: list[list[Message | None]]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    first: dict[int, int] = field(default_factory=dict)


class MemoryBroker:
    """Set `down` to make every call fail as an unreachable broker does. A poll returns up to `max_poll` messages."""

    def __init__(self, max_poll: int = 1000) -> None:
        self.down = False
        self.max_poll = max_poll
        self._lock = RLock()
        self._topics: dict[str, _Topic] = {}
        self._owners: dict[str, MemoryProducer] = {}
        self._groups: dict[tuple[str, str], list[MemoryGroupReader]] = {}

    def ensure_topics(self, topics: Mapping[str, int]) -> None:
        for name, partitions in topics.items():
            self._topics.setdefault(name, _Topic([[] for _ in range(partitions)]))

    def delete_topic(self, name: str) -> None:
        del self._topics[name]

    def delete_records(self, name: str, partition: int, before: int) -> None:
        """Delete messages, as retention does."""
        self._topics[name].first[partition] = before

    def producer(self, transactional_id: str) -> "MemoryProducer":
        with self._lock:
            self._owners[transactional_id] = MemoryProducer(self, transactional_id)
            return self._owners[transactional_id]

    def partition_reader(self, topic: str) -> "MemoryPartitionReader":
        return MemoryPartitionReader(self, topic)

    def group_reader(self, topic: str, group: str) -> "MemoryGroupReader":
        reader = MemoryGroupReader(self, topic, group)
        with self._lock:
            members = self._groups.setdefault((topic, group), [])
            members.append(reader)
            self._share_out(topic, members)
        return reader

    def topic(self, name: str) -> _Topic:
        if self.down:
            raise StoreDown("kafka", "down")
        if name not in self._topics:
            raise StoreDown("kafka", f"there is no topic {name}")
        return self._topics[name]

    def commit(self, producer: "MemoryProducer", messages: Sequence[OutgoingMessage]) -> list[Part]:
        with self._lock:
            if self._owners.get(producer.transactional_id) is not producer:
                raise Fenced("kafka: fenced by a newer producer")
            if any(len(message.value) > MAX_MESSAGE_BYTES for message in messages):
                raise StoreDown("kafka", "a message is too large")
            delivered = []
            for message in messages:
                log = self.topic(message.topic).logs[message.partition]
                delivered.append(Part(message.partition, len(log)))
                log.append(
                    Message(message.topic, message.partition, len(log), message.key, message.value, message.headers)
                )
            for topic, partition in {(m.topic, m.partition) for m in messages}:
                self.topic(topic).logs[partition].append(None)
            return delivered

    def leave(self, member: "MemoryGroupReader") -> None:
        with self._lock:
            members = self._groups[member.topic_name, member.group]
            if member in members:
                members.remove(member)
                self._share_out(member.topic_name, members)

    def _share_out(self, topic: str, members: "list[MemoryGroupReader]") -> None:
        partitions = range(len(self.topic(topic).logs))
        for index, member in enumerate(members):
            member.on_assign(partitions[index :: len(members)])


class MemoryProducer:
    def __init__(self, broker: MemoryBroker, transactional_id: str) -> None:
        self.transactional_id = transactional_id
        self._broker = broker
        self._usable = True

    def publish(self, messages: Sequence[OutgoingMessage]) -> list[Part]:
        if not self._usable:
            raise StoreDown("kafka", "this producer has ended: open another one")
        self._usable = False
        delivered = self._broker.commit(self, messages)
        self._usable = True
        return delivered

    def close(self) -> None:
        self._usable = False


class MemoryPartitionReader:
    def __init__(self, broker: MemoryBroker, topic: str) -> None:
        self.topic_name = topic
        self._broker = broker
        self._read_up_to: dict[int, int] = {}

    def topic_id(self) -> str:
        return self._broker.topic(self.topic_name).id

    def bounds(self) -> Mapping[int, tuple[int, int]]:
        topic = self._broker.topic(self.topic_name)
        return {p: (topic.first.get(p, 0), len(log)) for p, log in enumerate(topic.logs)}

    def assign(self, positions: Mapping[int, int]) -> None:
        self._read_up_to = dict(positions)

    def poll(self, timeout: float) -> list[Message]:
        topic = self._broker.topic(self.topic_name)
        found: list[Message] = []
        for partition, position in self._read_up_to.items():
            log = topic.logs[partition]
            if not topic.first.get(partition, 0) <= position <= len(log):
                raise NeedsOperator(f"kafka: offset {position} of partition {partition} is no longer kept")
            new = log[position : position + self._broker.max_poll - len(found)]
            found += [message for message in new if message is not None]
            self._read_up_to[partition] = position + len(new)
        if not found:
            time.sleep(min(timeout, 0.001))
        return found

    def read_up_to(self) -> Mapping[int, int]:
        return dict(self._read_up_to)

    def close(self) -> None:
        self._read_up_to = {}


class MemoryGroupReader(MemoryPartitionReader):
    def __init__(self, broker: MemoryBroker, topic: str, group: str) -> None:
        super().__init__(broker, topic)
        self.group = group
        self._assigned: Sequence[int] | None = None

    def on_assign(self, partitions: Sequence[int]) -> None:
        self._assigned = tuple(partitions)
        self._read_up_to = {}

    def rebalanced(self) -> Sequence[int] | None:
        assigned, self._assigned = self._assigned, None
        return assigned

    def close(self) -> None:
        super().close()
        self._broker.leave(self)
