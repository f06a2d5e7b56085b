"""The thread of the Spark jobs: what it waits for, and how it ends."""

import signal
from collections.abc import Callable
from unittest.mock import MagicMock, Mock

import pytest

from services.core.backoff import Backoff
from services.core.errors import NeedsOperator, StoreDown
from services.runtime.workers import Worker
from spark_jobs import driver
from spark_jobs.driver import Driver
from tests.waiting import until


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, number: found.append(number))
    monkeypatch.setattr(driver, "open_session", MagicMock())
    return found


def fast(prepare: Callable[[], None], stream: Mock) -> Driver:
    made = Driver("test", Mock(), [stream], prepare)
    made._worker = Worker("driver", made._turn, backoff=Backoff(0.0, 0.0))
    return made


def test_it_prepares_again_while_a_store_is_unreachable(killed: list[int]) -> None:
    stream, errors = Mock(), [StoreDown("hdfs", "unreachable")] * 3
    seen: list[str | None] = []

    def prepare() -> None:
        seen.append(made.health())
        if errors:
            raise errors.pop()

    made = fast(prepare, stream)
    made.start()
    until(lambda: stream.supervise.called)
    assert seen == [None, *["starting: hdfs: unreachable"] * 3]
    assert made.health() is None
    made.stop()
    assert stream.stop.called
    assert (made.error, killed) == (None, [])


def test_any_other_failure_ends_the_process(killed: list[int]) -> None:
    error = NeedsOperator("the checkpoint is lost")
    made = fast(Mock(side_effect=error), Mock())
    made.start()
    until(lambda: bool(killed))
    assert (made.error, killed) == (error, [signal.SIGTERM])
    made.stop()


def test_a_store_that_fails_later_ends_the_process(killed: list[int]) -> None:
    error = StoreDown("hdfs", "unreachable")
    stream = Mock(**{"supervise.side_effect": error})
    made = fast(Mock(), stream)
    made.start()
    until(lambda: bool(killed))
    assert (made.error, killed) == (error, [signal.SIGTERM])
    assert stream.stop.called
    made.stop()
