"""Reading a topic to its end: control records are progress, an open transaction is not."""

from collections.abc import Mapping

import pytest

from services.core.errors import StoreDown
from services.core.ports import Message
from services.streams.memory import MemoryBroker, MemoryPartitionReader
from services.streams.reading import read_to_end


class ControlRecords(MemoryPartitionReader):
    """A topic of 20 control records, of which each poll passes `step`. `polls`: the number of polls."""

    def __init__(self, step: int) -> None:
        broker = MemoryBroker()
        broker.ensure_topics({"topic": 1})
        super().__init__(broker, "topic")
        self.step = step
        self.polls = 0
        self.assigned: Mapping[int, int] | None = None

    def bounds(self) -> Mapping[int, tuple[int, int]]:
        return {0: (0, 20)}

    def assign(self, positions: Mapping[int, int]) -> None:
        self.assigned = positions

    def poll(self, timeout: float) -> list[Message]:
        self.polls += 1
        return []

    def read_up_to(self) -> Mapping[int, int]:
        assert self.assigned is not None
        return {0: self.assigned[0] + self.polls * self.step}


def test_control_records_count_as_progress() -> None:
    topic = ControlRecords(step=1)
    found = list(read_to_end(topic, "topic", {0: 5}, patience=2))
    assert found == [([], {0: offset}) for offset in range(6, 21)]


def test_an_end_that_is_not_reached_is_given_up_after_the_patience() -> None:
    topic = ControlRecords(step=0)
    with pytest.raises(StoreDown, match="topic topic could not be read to its end: no progress in 7 s"):
        list(read_to_end(topic, "topic", {0: 5}, patience=7))
    assert topic.polls == 7


def test_nothing_is_assigned_where_nothing_is_to_be_read() -> None:
    topic = ControlRecords(step=1)
    assert list(read_to_end(topic, "topic", {0: 20}, patience=2)) == []
    assert (topic.assigned, topic.polls) == (None, 0)
