"""Estimates with intervals, by a block bootstrap over the repeats of a cell.

A repeat is cut into consecutive blocks, because neighbouring samples depend on each other. A resample draws repeats,
and then blocks of the drawn repeats, and merges their histograms. Two cells of one run are resampled with the same
draws of repeats, because repeat N of both was measured in the same minutes.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.bench.evidence.histograms import Histogram, rounded

LEVEL = 0.95
RESAMPLES = 2000
BEYOND = 10
"""A quantile is reported if at least so many samples lie beyond it."""

_BLOCKS = 10


class Estimate(msgspec.Struct, frozen=True):
    """A value and the interval that holds the true one with the probability LEVEL."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Estimate":
        return Estimate(*(round(each * factor, 6) for each in (self.value, self.low, self.high)))

    def is_below(self, other: "Estimate") -> bool:
        """Return whether the whole interval lies below the whole interval of the other."""
        return self.high < other.low


def needed(q: float) -> int:
    """Return the number of samples from which on the quantile q is reported."""
    return math.ceil(round(BEYOND / min(q, 1 - q), 6))


class Sampled:
    """The samples of one cell: for each repeat, microseconds in the order of the schedule."""

    def __init__(self, repeats: Sequence[Sequence[int]], seed: int) -> None:
        self._repeats = [list(each) for each in repeats if each]
        self._seed = seed

    @property
    def count(self) -> int:
        return sum(map(len, self._repeats))

    def quantile(self, q: float) -> Estimate | None:
        """Return microseconds, None if there are too few samples."""
        if self.count < needed(q):
            return None
        return Estimate(self._merged.quantile(q), *_interval(self._draws(q)))

    def medians(self) -> list[float]:
        """Return the median of each repeat."""
        return [float(Histogram(each).quantile(0.5)) for each in self._repeats]

    def ratio(self, other: "Sampled") -> Estimate | None:
        """Return the median of the other as a multiple of this median; None if one of them has too few samples."""
        ours, theirs = self.quantile(0.5), other.quantile(0.5)
        if ours is None or theirs is None:
            return None
        draws = other._draws(0.5) / self._draws(0.5)
        return Estimate(theirs.value / ours.value, *_interval(draws))

    def _draws(self, q: float) -> NDArray[np.float64]:
        """Return the quantile of each resample."""
        values, cumulated = self._resampled
        totals = cumulated[:, -1]
        wanted = np.maximum(np.floor(q * totals + 0.5), 1)
        positions = (cumulated < wanted[:, None]).sum(axis=1)
        drawn: NDArray[np.float64] = values[positions].astype(np.float64)
        return drawn

    @cached_property
    def _merged(self) -> Histogram:
        return Histogram.merged(map(Histogram, self._repeats))

    @cached_property
    def _resampled(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the distinct values, and for each resample how many samples are at most each value."""
        blocks = [np.array_split(rounded(each), min(_BLOCKS, len(each))) for each in self._repeats]
        values = np.unique(np.concatenate([block for repeat in blocks for block in repeat]))
        counts = np.zeros((sum(map(len, blocks)), len(values)))
        for row, block in enumerate(block for repeat in blocks for block in repeat):
            np.add.at(counts[row], np.searchsorted(values, block), 1)
        return values, np.cumsum(self._weights([len(repeat) for repeat in blocks]) @ counts, axis=1)

    def _weights(self, sizes: Sequence[int]) -> NDArray[np.float64]:
        """Return how often each resample takes each block."""
        repeats = np.random.default_rng(self._seed).integers(len(sizes), size=(RESAMPLES, len(sizes)))
        rng = np.random.default_rng(self._seed + 1)
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        size_of = np.asarray(sizes)
        weights = np.zeros((RESAMPLES, sum(sizes)))
        rows = np.arange(RESAMPLES)
        for drawn in repeats.T:
            for position in range(max(sizes)):
                block = offsets[drawn] + rng.integers(0, size_of[drawn])
                np.add.at(weights, (rows, block), (position < size_of[drawn]).astype(float))
        return weights


def mean(values: Sequence[float], seed: int) -> Estimate:
    """Return the mean of one value for each repeat; without an interval (low = high) for a single repeat."""
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    return Estimate(float(array.mean()), *_interval(array[drawn].mean(axis=1)))


def mean_ratio(values: Sequence[float], others: Sequence[float], seed: int) -> Estimate:
    """Return the mean of the values as a share of the mean of the others, which are greater than 0.

    Both are resampled on their own, because repeat N of one was not measured beside repeat N of the other.
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = [array[rng.integers(len(array), size=(RESAMPLES, len(array)))].mean(axis=1) for array in (ours, theirs)]
    return Estimate(float(ours.mean() / theirs.mean()), *_interval(draws[0] / draws[1]))


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
