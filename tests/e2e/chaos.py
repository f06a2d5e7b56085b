"""Random kills and stops of every program of a stack, chosen by a seed and printed as they happen."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from services.local.stack import Stack

_PAUSE = (3.0, 12.0)  # seconds between two faults
_STOPPED = (1.0, 25.0)  # seconds until a stopped program goes on: up to more than a lease, a session or a heartbeat


class Chaos:
    """Harms one program after another. `end` leaves every program running.

    `killed` counts the programs that were killed by SIGKILL while they ran, one by one.
    """

    def __init__(self, stack: Stack, seed: str) -> None:
        self._stack = stack
        self._chance = random.Random(seed)
        self._started = time.monotonic()
        self.killed = 0
        self._faults: dict[str, Callable[[str], None]] = {
            "killed": self._kill,
            "paused": self._pause,
            "told to end": self._terminate,
            "stopped for a while": self._stop,
        }

    def harm(self, seconds: float) -> None:
        """Harm programs until `seconds` have passed since this object was made."""
        while time.monotonic() - self._started < seconds:
            time.sleep(self._chance.uniform(*_PAUSE))  # the seed chooses when a fault comes
            if self._chance.random() < 0.04:
                self._say("everything", "killed")
                self._kill_everything()
            else:
                victim, fault = self._chance.choice(self._stack.names), self._chance.choice(list(self._faults))
                self._say(victim, fault)
                self._faults[fault](victim)

    def end(self) -> None:
        self._stack.up()

    def _say(self, victim: str, fault: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s: {victim} {fault}", flush=True)

    def _kill(self, victim: str) -> None:
        self.killed += bool(self._signal(victim, signal.SIGKILL))

    def _terminate(self, victim: str) -> None:
        self._signal(victim, signal.SIGTERM)

    def _pause(self, victim: str) -> None:
        pid = self._signal(victim, signal.SIGSTOP)
        time.sleep(self._chance.uniform(*_STOPPED))
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _stop(self, victim: str) -> None:
        self._stack.supervisor.stop(victim)
        time.sleep(self._chance.uniform(*_STOPPED))
        self._stack.supervisor.start(victim)

    def _kill_everything(self) -> None:
        """Kill all programs at once, as a loss of power does, except that no cache of a disk is lost."""
        if supervisor := self._stack.supervisor.pid:
            pids = [supervisor, *(state.pid for state in self._stack.states().values() if state.pid)]
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._stack.up()

    def _signal(self, victim: str, number: signal.Signals) -> int:
        """Return the process id, or 0 while the program is being started again after an earlier fault."""
        pid = self._stack.states()[victim].pid
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid
