"""Background threads: turns, pauses, failures, and how they end."""

import signal
import threading
import time

import pytest

from services.core.backoff import Backoff
from services.core.errors import StoreDown
from services.runtime.workers import Worker, Workers
from tests.waiting import until

NO_PAUSE = Backoff(0.0, 0.0)


class Turns:
    """A turn that does what is planned, one after the other: raise the error, or return the pause; then pause long."""

    def __init__(self, *plan: Exception | float | None) -> None:
        self.plan = list(plan)
        self.count = 0
        self.closed_in: threading.Thread | None = None

    def __call__(self) -> float | None:
        self.count += 1
        if not self.plan:
            return 60.0
        planned = self.plan.pop(0)
        if isinstance(planned, Exception):
            raise planned
        return planned

    def close(self) -> None:
        self.closed_in = threading.current_thread()


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 10.0)
    assert [backoff.pause(failures) for failures in (1, 2, 3, 4, 5, 6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert backoff.pause(5000) == 10.0


def test_a_turn_that_fails_is_repeated_and_its_reason_is_kept_until_one_succeeds() -> None:
    turns = Turns(0.0, StoreDown("postgres", "unreachable"), ValueError("a bug"))
    gate = threading.Event()

    def turn() -> float | None:
        if turns.count == 3:
            gate.wait(60)
        return turns()

    worker = Worker("w", turn, backoff=NO_PAUSE)
    assert worker.health() is None
    worker.start()
    until(lambda: turns.count == 3)
    assert worker.health() == "unexpected error: ValueError('a bug')"
    gate.set()
    until(lambda: turns.count == 4 and worker.health() is None)
    worker.stop(10)


def test_wake_ends_a_pause_and_not_a_back_off() -> None:
    turns = Turns(60.0, StoreDown("kafka", "unreachable"))
    worker = Worker("w", turns, backoff=Backoff(60.0, 60.0))
    worker.start()
    until(lambda: turns.count == 1)
    worker.wake()
    until(lambda: turns.count == 2)
    worker.wake()
    time.sleep(0.05)
    assert turns.count == 2
    started = time.monotonic()
    worker.stop(10)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("pause", [60.0, None], ids=["stopped", "nothing left to do"])
def test_a_worker_is_closed_in_its_own_thread_after_the_last_turn(pause: float | None) -> None:
    turns = Turns(pause)
    worker = Worker("mine", turns, close=turns.close)
    worker.start()
    until(lambda: turns.count == 1)
    if pause is not None:
        worker.request_stop()
    until(lambda: turns.closed_in is not None)
    assert turns.closed_in
    assert turns.closed_in.name == "mine"


def test_the_first_turn_waits_for_the_delay() -> None:
    turns = Turns()
    worker = Worker("w", turns, delay=60.0)
    worker.start()
    time.sleep(0.05)
    worker.stop(10)
    assert turns.count == 0


def test_a_bug_ends_the_process_where_the_state_may_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append(number))
    turns = Turns(StoreDown("kafka", "unreachable"), ValueError("a bug"))
    worker = Worker("w", turns, close=turns.close, backoff=NO_PAUSE, exits_on_bug=True)
    worker.start()
    until(lambda: turns.closed_in is not None)
    assert (turns.count, killed) == (2, [signal.SIGTERM])


def test_workers_share_one_deadline() -> None:
    release = threading.Event()

    def hang() -> float:
        release.wait(60)
        return 0.0

    workers = Workers(*(Worker(f"w{number}", hang) for number in range(5)))
    workers.start()
    started = time.monotonic()
    workers.stop(0.2)
    assert 0.1 < time.monotonic() - started < 0.8
    release.set()
