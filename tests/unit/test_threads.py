"""Threads for calls that may hang."""

import subprocess
import sys
from threading import Barrier, Event, current_thread

import pytest

from services.runtime.threads import Threads

STUCK = """
from threading import Event
from services.query_api.query_threads import QueryThreads
import asyncio

async def run():
    threads = QueryThreads("store", 1)
    try:
        await threads.run(lambda stop: Event().wait(), 0.2)
    finally:
        threads.close()

try:
    asyncio.run(run())
except Exception as error:
    print(type(error).__name__)
"""


def test_a_query_that_is_stuck_does_not_delay_the_end_of_its_process() -> None:
    ended = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (0, "StoreDown\n"), ended.stderr


def test_calls_run_side_by_side_up_to_the_number_of_threads() -> None:
    threads, together = Threads(3, "test"), Barrier(3)

    def meet() -> str:
        together.wait(10)
        return current_thread().name

    for _ in range(2):  # the second time by the threads of the first
        names = [future.result(10) for future in [threads.submit(meet) for _ in range(3)]]
        assert sorted(names) == ["test-0", "test-1", "test-2"]
    threads.close()


def test_one_thread_is_enough_for_calls_one_after_the_other() -> None:
    threads = Threads(3, "test")
    assert {threads.submit(lambda: current_thread().name).result(10) for _ in range(2)} == {"test-0"}
    threads.close()


def test_a_call_that_raises_leaves_its_thread_to_the_next() -> None:
    threads = Threads(1, "test")
    failed = threads.submit(lambda: ""[0])
    with pytest.raises(IndexError):
        failed.result(10)
    assert threads.submit(lambda: 7).result(10) == 7
    threads.close()


def test_calls_that_wait_are_cancelled_at_the_end() -> None:
    threads, begun, released = Threads(1, "test"), Event(), Event()

    def work() -> bool:
        begun.set()
        return released.wait(10)

    first, second = threads.submit(work), threads.submit(work)
    assert begun.wait(10)
    threads.close()
    assert second.cancelled()
    released.set()
    assert first.result(10)
