"""The open-loop schedule on a clock of our own: nothing is skipped, and lateness is told."""

from services.generator.schedule import Schedule


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_tick_is_due_at_once() -> None:
    schedule = Schedule(5.0, Clock())
    assert schedule.wait() == 0
    assert schedule.take() == 100.0


def test_ticks_stay_on_their_times_however_late_they_are_taken() -> None:
    clock = Clock()
    schedule = Schedule(5.0, clock)
    taken = []
    for late in (0.0, 0.4, 1.1, 0.0, 4.9):
        clock.now += schedule.wait() + late
        taken.append(schedule.take())
    assert taken == [100.0, 105.0, 110.0, 115.0, 120.0]


def test_late_ticks_are_caught_up() -> None:
    clock = Clock()
    schedule = Schedule(1.0, clock)
    schedule.take()
    clock.now += 10.0  # something stalled
    caught_up = []
    while schedule.wait() == 0:
        caught_up.append((schedule.take(), schedule.behind()))
    assert [due for due, _ in caught_up] == [101.0 + i for i in range(10)]
    assert [behind for _, behind in caught_up] == [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0]
    assert schedule.wait() == 1.0


def test_behind_grows_until_the_tick_is_taken() -> None:
    clock = Clock()
    schedule = Schedule(2.0, clock)
    schedule.take()
    clock.now = 101.0
    assert (schedule.behind(), schedule.wait()) == (0.0, 1.0)
    clock.now = 105.5
    assert (schedule.behind(), schedule.wait()) == (3.5, 0.0)


def test_no_drift() -> None:
    schedule = Schedule(0.1, Clock())
    for _ in range(100_000):
        schedule.take()
    assert schedule.due == 100.0 + 100_000 * 0.1


def test_without_interval_all_is_due_now() -> None:
    schedule = Schedule(0.0, Clock())
    assert [schedule.take() for _ in range(3)] == [100.0] * 3
    assert schedule.wait() == 0
