"""Starts, configures and queries the supervisord that keeps the programs of the stack running.

Each stack has its own supervisord. Its state is in the stack's folder, and so is the Unix socket by which it is called.
"""

import os
import shlex
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
from supervisor.xmlrpc import SupervisorTransport

from services.core.errors import NeedsOperator
from services.local.program import Program, write_private

STOP_SECONDS = 30  # after SIGTERM, before SIGKILL; a process of the pipeline drains within 25
_SOCKET_PATH_LIMIT = 100
MARK = "LOGPIPE_SUPERVISED_IN"
"""The variable in the environment of each program that names its stack's folder."""


@dataclass(frozen=True, slots=True)
class State:
    """`name`: STOPPED, STARTING, RUNNING, BACKOFF (it has ended and starts again soon), STOPPING, EXITED or FATAL."""

    name: str
    pid: int
    description: str


class Supervisor:
    """All methods block. Thread-safe, because each call has a connection of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "supervisord.conf"
        self._programs = folder / "programs"  # has a file of configuration for each program
        self._socket = folder / "supervisord.sock"
        self._pid_file = folder / "supervisord.pid"

    def log_of(self, name: str) -> Path:
        return self._folder / "logs" / f"{name}.log"

    @property
    def pid(self) -> int | None:
        """The process id of the supervisord of this folder; None if it does not run."""
        with suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(self._pid_file.read_text()))
            if str(self._config) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                return int(process.pid)
        return None

    def configure(
        self, programs: Iterable[Program], chosen: Collection[str], inherited: Mapping[str, str]
    ) -> list[str]:
        """Start supervisord if it does not run, and configure it with exactly these programs.

        The programs named in `chosen` get a new configuration, with the environment `inherited` beside their own. The
        other programs keep theirs. Stops the programs whose configuration has changed, and returns their names.
        """
        if len(str(self._socket)) > _SOCKET_PATH_LIMIT:
            raise NeedsOperator(
                f"the path {self._folder} is too long for a Unix socket: set LOGPIPE_STACK to a shorter one"
            )
        (self._folder / "logs").mkdir(parents=True, exist_ok=True)
        self._programs.mkdir(exist_ok=True)
        write_private(self._config, self._configuration())
        files = {self._programs / f"{program.name}.conf": program for program in programs}
        for file in set(self._programs.iterdir()) - files.keys():
            file.unlink()
        for file, program in files.items():
            if program.name in chosen or not file.exists():
                write_private(file, self._section_of(program, inherited))
        if self.pid is None:
            self.end_leftovers()
            self._launch()
            return []
        added, changed, removed = cast(list[list[list[str]]], self._call("reloadConfig"))[0]
        for name in [*changed, *removed]:
            self._call("stopProcessGroup", name)
            self._call("removeProcessGroup", name)
        for name in [*added, *changed]:
            self._call("addProcessGroup", name)
        return changed

    def states(self) -> dict[str, State]:
        """Return the state of every configured program; empty if supervisord does not run."""
        if (pid := self.pid) is None:
            return {}
        try:
            found = cast(list[dict[str, Any]], self._call("getAllProcessInfo"))
        except OSError:
            if _ends(pid):  # it was killed just now
                return {}
            raise
        return {each["name"]: State(each["statename"], each["pid"], each["description"]) for each in found}

    def start(self, name: str) -> None:
        self._call("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Stop a program; returns once it has ended."""
        with suppress(xmlrpc.client.Fault):  # it does not run
            self._call("stopProcess", name)

    def shutdown(self) -> None:
        """End supervisord; returns when supervisord and all programs that it started have ended."""
        if (pid := self.pid) is not None:
            self._call("shutdown")
            with suppress(psutil.NoSuchProcess):
                _end(psutil.Process(pid), STOP_SECONDS + 5)
        self.end_leftovers()

    def end_leftovers(self) -> None:
        """End the processes that a killed supervisord left behind, because they occupy ports and data folders."""
        left = [process for process in psutil.process_iter() if self._is_ours(process)]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(left, timeout=STOP_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get(MARK) == str(self._folder))
        except (psutil.Error, OSError):
            return False

    def _call(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        finally:
            transport.close()

    def _launch(self) -> None:
        self._socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        deadline = time.monotonic() + 10
        while done.returncode == 0 and self.pid is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.pid is None:
            raise NeedsOperator(f"supervisord does not start: {done.stderr.strip() or self.log_of('supervisord')}")

    def _configuration(self) -> str:
        sections = (
            _section(
                "supervisord",
                logfile=self.log_of("supervisord"),
                logfile_maxbytes="5MB",
                logfile_backups=1,
                pidfile=self._pid_file,
                directory=self._folder,
                # Without this line, supervisord warns that it runs as root.
                **({"user": "root"} if os.geteuid() == 0 else {}),
            ),
            _section("unix_http_server", file=self._socket, chmod="0600"),
            _section(
                "rpcinterface:supervisor",
                **{"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"},
            ),
            _section("include", files=self._programs / "*.conf"),
        )
        return "\n".join(sections)

    def _section_of(self, program: Program, inherited: Mapping[str, str]) -> str:
        environment = {**inherited, **program.environment, MARK: str(self._folder)}
        return _section(
            f"program:{program.name}",
            command=shlex.join(program.command),
            directory=program.folder,
            environment=",".join(f"{k}={_quoted(v)}" for k, v in environment.items()),
            autostart="false",
            autorestart="true",
            startsecs=1,
            startretries=100,  # the pause is a second longer after each, so a dependency may be down for a while
            stopsignal=program.stop_signal,
            stopwaitsecs=STOP_SECONDS,
            killasgroup="true",
            redirect_stderr="true",
            stdout_logfile=self.log_of(program.name),
            stdout_logfile_maxbytes="10MB",
            stdout_logfile_backups=2,
        )


def _ends(pid: int) -> bool:
    """Return whether the process ends within some seconds."""
    try:
        psutil.Process(pid).wait(timeout=5)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def _end(process: psutil.Process, seconds: float) -> None:
    """Wait until a process that was told to end has ended; after `seconds` the process is killed."""
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(5)


def _section(name: str, **values: Any) -> str:
    lines = "".join(f"{key}={str(value).replace('%', '%%')}\n" for key, value in values.items())
    return f"[{name}]\n{lines}"


def _quoted(value: str) -> str:
    """Quote a value for supervisord, which knows both quotes and no escapes."""
    quote = "'" if '"' in value else '"'
    return f"{quote}{value}{quote}"
