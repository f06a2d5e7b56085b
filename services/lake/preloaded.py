"""All code that a process of `processes` runs, loaded once in the process that they are forked from."""

import pyarrow as pa

from services.lake import processes

__all__ = ["processes"]

pa.array([0])  # pyarrow imports pandas now, where that is installed: that takes 2 s, and each process would do it
