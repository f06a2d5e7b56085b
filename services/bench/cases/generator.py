"""How fast one core makes rows, and in how much memory."""

import subprocess
import sys
import time
from pathlib import Path

from services import datasets
from services.bench.cases.figures import Figure
from services.generator.synthesis import Synthesizer

_ROWS = 2_000_000
_BLOCK = 1000


def measure(runs: int) -> list[Figure]:
    """Measure each run in a process of its own, so that its peak memory is its own."""
    rates, memory = [], []
    for _ in range(runs):
        out = subprocess.run([sys.executable, "-m", __name__], check=True, capture_output=True, text=True).stdout
        rate, peak = out.split()
        rates.append(float(rate))
        memory.append(float(peak))
    return [
        Figure("generator", "rows/s a core", rates, 200_000, 500_000, notes=[f"{_ROWS:,} log rows as JSON bytes"]),
        Figure("generator, memory", "MB", memory, 100, 50, better="less", notes=["peak of the whole process"]),
    ]


def _run() -> None:
    table = Synthesizer(datasets.find("logs"), seed=1, start_us=time.time_ns() // 1000, step_us=1)
    started = time.process_time()
    for first in range(0, _ROWS, _BLOCK):
        table.ndjson(first, _BLOCK)
    rate = _ROWS / (time.process_time() - started)
    print(rate, _peak_megabytes())  # noqa: T201 - read by measure()


def _peak_megabytes() -> float:
    """Return the peak memory of this program. `ru_maxrss` would be wrong: exec keeps the peak of the process before."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


if __name__ == "__main__":
    _run()
