from services.core.request_groups import RequestGroups


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def groups(max_wait: float, clock: Clock | None = None) -> RequestGroups[str, str]:
    return RequestGroups(10, 1000, max_wait, clock or Clock())


def test_a_lone_item_waits_its_time_and_no_longer() -> None:
    clock = Clock()
    waiting = groups(0.005, clock)
    assert waiting.seconds_until_due() is None
    waiting.add("logs", "a", 1, 1)
    assert waiting.pop_due() is None
    assert waiting.seconds_until_due() == 0.005
    clock.now = 0.005
    assert waiting.pop_due() == ("logs", ["a"])
    assert len(waiting) == 0


def test_a_full_group_is_due_at_once_and_the_rest_stays() -> None:
    waiting = groups(5)
    for item in "abc":
        waiting.add("logs", item, 4, 1)
    assert waiting.seconds_until_due() == 0
    assert waiting.pop_due() == ("logs", ["a", "b"])
    assert waiting.pop_due() is None
    assert len(waiting) == 1


def test_few_rows_of_many_bytes_are_a_full_group_too() -> None:
    waiting = groups(5)
    for item in "abc":
        waiting.add("logs", item, 1, 400)
    assert waiting.seconds_until_due() == 0
    assert waiting.pop_due() == ("logs", ["a", "b"])
    assert waiting.pop_due() is None  # what was taken no longer counts
    assert len(waiting) == 1


def test_an_item_larger_than_a_group_travels_alone() -> None:
    waiting = groups(5)
    waiting.add("logs", "many rows", 1000, 1)
    waiting.add("logs", "many bytes", 1, 5000)
    waiting.add("logs", "small", 1, 1)
    assert waiting.pop_due() == ("logs", ["many rows"])
    assert waiting.pop_due() == ("logs", ["many bytes"])
    assert waiting.pop_due() is None


def test_groups_do_not_mix_and_the_oldest_goes_first() -> None:
    clock = Clock()
    waiting = groups(1, clock)
    waiting.add("logs", "a", 1, 1)
    clock.now = 0.5
    waiting.add("events", "b", 1, 1)
    waiting.add("logs", "c", 1, 1)
    clock.now = 2.0
    assert waiting.pop_due() == ("logs", ["a", "c"])
    assert waiting.pop_due() == ("events", ["b"])
