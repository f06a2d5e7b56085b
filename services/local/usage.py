"""What a program of the stack uses: CPU time, memory and disk."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from services.local.supervision import State


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, of the children that run, and of those that it has waited for."""
    total = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def cpu_by_program(states: Mapping[str, State]) -> dict[str, float]:
    """Return the CPU time of each program that runs."""
    return {name: cpu_seconds(state.pid) for name, state in states.items() if state.pid}


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and its children. Memory that several processes share counts once (PSS)."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += each.memory_full_info().pss
    return total


def disk_bytes(folder: Path) -> int:
    """Return the space that the files below `folder` occupy. Files that vanish meanwhile are left out."""
    total = 0
    for file in files_below(folder):
        with suppress(OSError):
            total += file.lstat().st_blocks * 512
    return total


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file. One may have vanished when it is yielded."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent) / name for name in names)
