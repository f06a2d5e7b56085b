"""HDR histograms of durations in microseconds: recorded from samples, merged, and kept as text."""

from collections.abc import Iterable

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

_HIGHEST = 3_600_000_000  # an hour; what took longer is recorded as an hour
_DIGITS = 3
_HALF_BUCKET_BITS = 11  # three digits need 2,048 values in the first bucket


class Histogram:
    """Durations in microseconds, exact to three digits."""

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._inner = HdrHistogram(1, _HIGHEST, _DIGITS)
        for value in values:
            self._inner.record_value(min(max(value, 1), _HIGHEST))

    @classmethod
    def merged(cls, histograms: Iterable["Histogram"]) -> "Histogram":
        whole = cls()
        for each in histograms:
            whole._inner.add(each._inner)
        return whole

    @classmethod
    def decoded(cls, text: str) -> "Histogram":
        made = cls()
        made._inner = HdrHistogram.decode(text)
        return made

    def encoded(self) -> str:
        """Return HdrHistogram's own compressed form (V2, base64), which its tools in every language read."""
        return str(self._inner.encode().decode())

    def equals(self, other: "Histogram") -> bool:
        return self.encoded() == other.encoded()

    def quantile(self, q: float) -> int:
        """Return the highest value that counts as equal to the one at this quantile."""
        return int(self._inner.get_value_at_percentile(q * 100))


def rounded(values: Iterable[int]) -> NDArray[np.int64]:
    """Return each value as `Histogram.quantile` would return it."""
    exact = np.clip(np.fromiter(values, np.int64), 1, _HIGHEST)
    shift = np.maximum(np.ceil(np.log2(exact + 1)).astype(np.int64) - _HALF_BUCKET_BITS, 0)
    return (((exact >> shift) + 1) << shift) - 1
