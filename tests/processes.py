"""Runs the pipeline's own processes for tests: on free ports, awaited until they are ready, always ended."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from tests.waiting import until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """The process `logpipe COMMAND` with these settings. It serves /readyz at `port`. All methods block."""

    def __init__(self, command: str, environment: dict[str, str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._arguments = [sys.executable, "-m", "services", *command.split()]
        self._environment = {**os.environ, **environment}
        self._running: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> "Process":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        self.launch()
        self.await_ready()

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    def launch(self) -> None:
        """Start the process without waiting until it is ready."""
        self._log = tempfile.NamedTemporaryFile(prefix="logpipe-test-", suffix=".log")  # noqa: SIM115 - see stop()
        self._running = subprocess.Popen(
            self._arguments, env=self._environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def await_ready(self) -> None:
        until(self._is_ready, about=lambda: f"{self._arguments} did not get ready:\n{self.output()}")

    def _is_ready(self) -> bool:
        assert self._running is not None
        assert self._running.poll() is None, f"{self._arguments} ended:\n{self.output()}"
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self._running is not None
        os.killpg(self._running.pid, number)

    def kill(self) -> None:
        """End the process as a crash would, without a chance to clean up. The test fails if the process had ended."""
        assert self._running is not None
        assert self._running.poll() is None, f"{self._arguments} ended before it was killed:\n{self.output()}"
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        assert self._running is not None
        return self._running.wait(timeout=60)

    def stop(self) -> int:
        """End the process by SIGTERM and return its exit code. Kill it and raise TimeoutExpired if it does not end."""
        assert self._running is not None
        try:
            if self._running.poll() is None:
                self.signal(signal.SIGTERM)
            return self._running.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.wait()
            raise
        finally:
            if self._log is not None:
                self._log.close()

    def output(self) -> str:
        assert self._log is not None
        return Path(self._log.name).read_text(errors="replace")[-8000:]
