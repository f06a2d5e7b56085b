"""What each program of a stack uses while something is measured."""

import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from services.local import usage
from services.local.stack import Stack

_INTERVAL = 0.5


class Meter:
    """A context. Afterwards, by program: `cpu`, the CPU seconds, and `peak`, the most bytes of memory (sampled)."""

    def __init__(self, stack: Stack) -> None:
        self.cpu: dict[str, float] = {}
        self.peak: dict[str, int] = defaultdict(int)
        self._stack = stack
        self._before: dict[str, float] = {}
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._before = usage.cpu_by_program(self._stack.states())
        self._sampling = self._pool.submit(self._sample)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._pool.shutdown()
        self._sampling.result()
        after = usage.cpu_by_program(self._stack.states())
        self.cpu = {name: seconds - self._before.get(name, 0.0) for name, seconds in after.items()}

    def _sample(self) -> None:
        pids = {name: state.pid for name, state in self._stack.states().items() if state.pid}
        while True:
            for name, pid in pids.items():
                self.peak[name] = max(self.peak[name], usage.memory_bytes(pid))
            if self._ended.wait(_INTERVAL):
                return
