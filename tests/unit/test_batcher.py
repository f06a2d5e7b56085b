from services.core.batcher import Batcher


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_lone_item_waits_its_time_and_no_longer() -> None:
    clock = Clock()
    batcher: Batcher[str, str] = Batcher(10, 0.005, clock)
    assert batcher.seconds_until_due() is None
    batcher.add("logs", "a", 1)
    assert batcher.take() is None
    assert batcher.seconds_until_due() == 0.005
    clock.now = 0.005
    assert batcher.take() == ("logs", ["a"])
    assert len(batcher) == 0


def test_a_full_group_is_due_at_once_and_the_rest_stays() -> None:
    batcher: Batcher[str, str] = Batcher(10, 5, Clock())
    for item in "abc":
        batcher.add("logs", item, 4)
    assert batcher.seconds_until_due() == 0
    assert batcher.take() == ("logs", ["a", "b"])
    assert batcher.take() is None
    assert len(batcher) == 1


def test_an_item_larger_than_a_group_travels_alone() -> None:
    batcher: Batcher[str, str] = Batcher(10, 5, Clock())
    batcher.add("logs", "huge", 1000)
    batcher.add("logs", "small", 1)
    assert batcher.take() == ("logs", ["huge"])


def test_groups_do_not_mix_and_the_oldest_goes_first() -> None:
    clock = Clock()
    batcher: Batcher[str, str] = Batcher(10, 1, clock)
    batcher.add("logs", "a", 1)
    clock.now = 0.5
    batcher.add("events", "b", 1)
    batcher.add("logs", "c", 1)
    clock.now = 2.0
    assert batcher.take() == ("logs", ["a", "c"])
    assert batcher.take() == ("events", ["b"])
