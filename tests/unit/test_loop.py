"""The loop of a consumer group, on the broker in memory: which handler's method is called in which state."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest

from services.core.errors import Backpressure, Fenced, LogpipeError, NeedsOperator, StoreDown
from services.core.ports import Message, OutgoingMessage
from services.streams.loop import AfterFailure, GroupLoop, State
from services.streams.memory import MemoryBroker, MemoryGroupReader

TOPIC = "things"
PARTITIONS = 2


class Recorder:
    """A handler that writes each message at once; `plan`: method -> the errors of its next calls, None for success."""

    def __init__(self) -> None:
        self.plan: dict[str, list[LogpipeError | None]] = {}
        self.calls: list[str] = []
        self.held: list[bytes] = []
        self.written: list[bytes] = []
        self.committed = dict.fromkeys(range(PARTITIONS), 0)
        self.read_up_to: Mapping[int, int] = {}
        self.decision = AfterFailure.KEEP
        self.reload = False

    def _called(self, name: str) -> None:
        self.calls.append(name)
        planned = self.plan.get(name)
        if planned and (error := planned.pop(0)):
            raise error

    def prepare(self) -> None:
        self._called("prepare")

    def load(self, assigned: Sequence[int]) -> Mapping[int, int]:
        assert self.held == []
        self._called("load")
        return {partition: self.committed[partition] for partition in assigned}

    def receive(self, messages: Sequence[Message], read_up_to: Mapping[int, int]) -> None:
        self.held += [message.value for message in messages]
        self.read_up_to = read_up_to

    def flush(self) -> bool:
        self._called("flush")
        self.written += self.held
        self.held = []
        self.committed |= self.read_up_to
        reload, self.reload = self.reload, False
        return not reload

    def drop(self) -> None:
        self.calls.append("drop")
        self.held = []

    def after_failure(self, error: LogpipeError) -> AfterFailure:
        return self.decision

    def close(self) -> None:
        self.calls.append("close")


class Scene:
    def __init__(self) -> None:
        self.now = 0.0
        self.broker = MemoryBroker()
        self.broker.ensure_topics({TOPIC: PARTITIONS})
        self.handler = Recorder()
        self._producer = self.broker.producer("test")

    def publish(self, *values: bytes, partition: int = 0) -> None:
        self._producer.publish([OutgoingMessage(TOPIC, partition, b"", value) for value in values])

    def loop(self) -> GroupLoop[Recorder]:
        return GroupLoop("test", self.broker.group_reader(TOPIC, "group"), self.handler, lambda: self.now)

    def reading(self) -> GroupLoop[Recorder]:
        loop = self.loop()
        loop.step()
        assert loop._state is State.READING
        self.handler.calls.clear()
        return loop


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_it_prepares_loads_and_reads(scene: Scene) -> None:
    loop = scene.loop()
    assert loop.health() == "starting"
    scene.publish(b"a", b"b")
    for _ in range(2):
        loop.step()
    assert loop.health() is None
    assert scene.handler.calls == ["drop", "prepare", "load", "flush"]
    assert scene.handler.written == [b"a", b"b"]
    assert scene.handler.committed == {0: 3, 1: 0}  # past the control record


def test_a_member_without_partitions_is_well(scene: Scene) -> None:
    class Unassigned(MemoryGroupReader):
        def rebalanced(self) -> Sequence[int] | None:
            return None

    loop = GroupLoop("test", Unassigned(scene.broker, TOPIC, "other"), scene.handler, lambda: scene.now)
    loop.step()
    assert loop.health() == "waiting for the group to assign partitions"
    others = [scene.loop() for _ in range(PARTITIONS + 1)]
    others[-1].step()
    assert others[-1].health() is None
    assert "load" not in scene.handler.calls


@pytest.mark.parametrize("method", ["prepare", "load", "flush"])
@pytest.mark.parametrize("decision", [AfterFailure.KEEP, AfterFailure.RELOAD])
def test_after_a_failure_it_pauses_longer_each_time_and_takes_each_message_once(
    scene: Scene, method: str, decision: AfterFailure
) -> None:
    scene.publish(b"a")
    scene.handler.decision = decision
    scene.handler.plan[method] = [StoreDown("store", "unreachable")] * 3
    loop, attempts = scene.loop(), []
    for _ in range(60):
        before = scene.handler.calls.count(method)
        loop.step()
        if scene.handler.calls.count(method) > before and loop.health() == "store: unreachable":
            attempts.append(scene.now)
        scene.now = round(scene.now + 0.1, 1)
    assert loop.health() is None
    first, second, *_ = [later - earlier for earlier, later in pairwise(attempts)]
    assert 0.2 <= first < 0.5
    assert 0.4 <= second < 0.7
    assert scene.handler.written == [b"a"]


def test_nothing_is_read_while_a_write_fails(scene: Scene) -> None:
    loop = scene.reading()
    scene.handler.plan["flush"] = [StoreDown("store", "unreachable")] * 3
    scene.publish(b"a")
    loop.step()
    assert loop._state is State.PAUSED
    for _ in range(20):
        scene.publish(b"later")
        loop.step()
    assert scene.handler.held == [b"a"]
    assert "drop" not in scene.handler.calls
    for _ in range(20):
        scene.now += 1
        loop.step()
    assert scene.handler.written == [b"a", *[b"later"] * 20]


def test_backpressure_is_held_for_as_long_as_it_says(scene: Scene) -> None:
    loop = scene.reading()
    scene.handler.plan["flush"] = [Backpressure("full", 30.0)]
    loop.step()
    for _ in range(29):
        scene.now += 1
        loop.step()
    assert scene.handler.calls == ["flush"]
    assert loop.health() == "full"
    scene.now += 1
    loop.step()
    assert scene.handler.calls == ["flush", "flush"]
    assert loop.health() is None


def test_a_fenced_handler_drops_what_it_holds_and_loads_again(scene: Scene) -> None:
    loop = scene.reading()
    scene.handler.decision = AfterFailure.RELOAD
    scene.handler.plan["flush"] = [Fenced("somebody else wrote")]
    scene.publish(b"a")
    loop.step()
    assert scene.handler.held == []
    scene.now += 1
    for _ in range(2):
        loop.step()
    assert scene.handler.calls == ["flush", "drop", "load", "flush"]
    assert scene.handler.written == [b"a"]


def test_a_rebalance_drops_what_is_held_even_during_a_pause(scene: Scene) -> None:
    loop = scene.reading()
    scene.handler.plan["flush"] = [StoreDown("store", "unreachable")]
    scene.publish(b"a")
    loop.step()
    other = scene.loop()
    loop.step()
    assert loop._state is State.UNLOADED
    assert scene.handler.held == []
    assert loop.health() == "store: unreachable"
    other.close()
    scene.now += 1
    for _ in range(3):
        loop.step()
    assert scene.handler.written == [b"a"]


def test_positions_are_loaded_again_when_the_handler_asks_for_it(scene: Scene) -> None:
    loop = scene.reading()
    scene.handler.reload = True
    scene.publish(b"a")
    for _ in range(3):
        loop.step()
    assert scene.handler.calls == ["flush", "drop", "load", "flush"]
    assert scene.handler.written == [b"a"]


def test_it_stops_for_an_operator_and_leaves_the_group(scene: Scene) -> None:
    loop = scene.reading()
    scene.handler.decision = AfterFailure.STOP
    scene.handler.plan["flush"] = [NeedsOperator("run a command")]
    worker = loop.worker()
    worker.start()
    worker._thread.join(60)
    assert not worker._thread.is_alive()
    assert loop._state is State.STOPPED
    assert loop.health() == "run a command"
    assert scene.handler.calls[-2:] == ["drop", "close"]
    heir = scene.loop()
    heir.step()
    assert heir._assigned == tuple(range(PARTITIONS))


def test_the_broker_is_unreachable(scene: Scene) -> None:
    loop = scene.reading()
    scene.broker.down = True
    loop.step()
    assert loop.health() == "kafka: down"
    scene.broker.down = False
    scene.publish(b"a")
    scene.now += 1
    for _ in range(2):
        loop.step()
    assert scene.handler.written == [b"a"]


def test_after_a_bug_nothing_held_is_written(scene: Scene) -> None:
    loop = scene.reading()
    scene.handler.plan["flush"] = [ValueError("a bug")]  # type: ignore[list-item]
    scene.publish(b"a")
    with pytest.raises(ValueError, match="a bug"):
        loop.step()
    loop.close()
    assert scene.handler.calls == ["flush", "drop", "close"]
    assert scene.handler.written == []
