"""How fast one core makes rows, and in how much memory."""

import resource
import subprocess
import sys
import time

from services import datasets
from services.bench.figures import Figure
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(rate, peak)  # noqa: T201 - read by measure()


if __name__ == "__main__":
    _run()
