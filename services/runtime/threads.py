"""Runs calls that may hang in threads that never delay the end of the process."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock, Semaphore
from typing import Any, TypeVar

from services.runtime.workers import Worker

Result = TypeVar("Result")
_Call = tuple["Future[Any]", Callable[[], Any]]


class Threads:
    """At most `most` threads, each started when a call finds no idle one. Thread-safe; no method blocks.

    A `concurrent.futures.ThreadPoolExecutor` is not used: at the end of a process Python waits for each of its threads,
    so one that is stuck in a store would keep the process from ending.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._idle = Semaphore(0)
        self._starting = Lock()
        self._workers: list[Worker] = []

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """Run `call` in one of the threads, and return its outcome, which can be cancelled until a thread begins."""
        future: Future[Result] = Future()
        self._calls.put((future, call))
        with self._starting:
            if not self._idle.acquire(blocking=False) and len(self._workers) < self._most:
                self._workers.append(Worker(f"{self._name}-{len(self._workers)}", self._turn))
                self._workers[-1].start()
        return future

    def close(self) -> None:
        """Cancel the calls that wait. Each thread ends after its present call. Nothing may be submitted afterwards."""
        try:
            while waiting := self._calls.get_nowait():
                waiting[0].cancel()
        except Empty:
            pass
        for _ in self._workers:
            self._calls.put(None)

    def _turn(self) -> float | None:
        """The turn of each thread: run the next call, as soon as there is one."""
        waiting = self._calls.get()
        if waiting is None:
            return None
        future, call = waiting
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller who waits
                future.set_exception(error)
        self._idle.release()
        return 0.0
