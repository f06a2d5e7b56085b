"""Control arms of the driver's machine: its cores, and the disk of its temporary folder."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from services.bench.target.urls import Target

_BURN = (
    "import time\nend, n = time.perf_counter() + {seconds}, 0\nwhile time.perf_counter() < end:\n    n += 1\nprint(n)"
)
_BURN_SECONDS = 1.0
_BLOCK = 1 << 20
_BLOCKS = 64
_SYNCS = 50


def cores(_target: Target) -> Mapping[str, float]:
    one = _burn(1)
    return {"work of two burners, in times of one": _burn(2) / one}


def _burn(burners: int) -> float:
    """Return the loops of so many processes that compute side by side."""
    command = [sys.executable, "-c", _BURN.format(seconds=_BURN_SECONDS)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(burners)]
    return sum(float(each.communicate()[0]) for each in running)


def disk(_target: Target) -> Mapping[str, float]:
    with tempfile.TemporaryFile(buffering=0) as file:
        block = os.urandom(_BLOCK)
        start = time.perf_counter()
        for _ in range(_BLOCKS):
            file.write(block)
        os.fsync(file.fileno())
        written = _BLOCKS * _BLOCK / (time.perf_counter() - start) / 1e6
        start = time.perf_counter()
        for _ in range(_SYNCS):
            file.write(block[:8192])
            os.fsync(file.fileno())
        return {"MB/s written": written, "fsyncs/s": _SYNCS / (time.perf_counter() - start)}
