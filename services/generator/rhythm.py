"""How busy each minute of a week is, and the times of rows that follow this rhythm."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MINUTES = 7 * 24 * 60

_MINUTE = 60_000_000  # microseconds
_WEEK = MINUTES * _MINUTE
_MONDAY = 4 * 24 * 60 * _MINUTE  # 1970-01-05 00:00 UTC

Times = NDArray[np.int64]
"""Microseconds since 1970."""


class Rhythm:
    """`weights`: how busy each minute is compared to the others, from Monday 00:00 UTC. All are above 0.

    Rows are placed evenly along the `progress` of the week, which advances faster in busy minutes. In a whole week it
    advances as far as time does, so the mean distance of rows is the distance of their progress.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if len(weights) != MINUTES or min(weights) <= 0:
            raise ValueError(f"a rhythm has {MINUTES} weights above 0")
        self._times = np.arange(MINUTES + 1) * float(_MINUTE)
        sums = np.concatenate([[0.0], np.cumsum(np.asarray(weights, np.float64))])
        self._progress = sums / sums[-1] * _WEEK

    def progress(self, time: int) -> int:
        """Return the progress at a time, in microseconds since 1970."""
        weeks, within = divmod(time - _MONDAY, _WEEK)
        return weeks * _WEEK + round(float(np.interp(within, self._times, self._progress)))

    def times(self, progress: Times) -> Times:
        """Return the times at which the progress is reached."""
        weeks, within = np.divmod(progress, _WEEK)
        times: Times = (
            np.rint(np.interp(within, self._progress, self._times)).astype(np.int64) + weeks * _WEEK + _MONDAY
        )
        return times
