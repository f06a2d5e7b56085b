"""Makes rows of a dataset by rules, a block of rows at a time. Row i of a seeded table depends on (seed, i) only.

A block is a numpy array of fixed-width fields, padded with NUL: one field for each varying or literal segment of a
row's JSON. JSON text never holds a NUL, so that the array's bytes without the NULs are the finished lines. The random
words come from Philox, a counter-based generator: row i owns the counters from i * stride. Any range of rows can
therefore be made without the rows before it, and a seed gives the same bytes on any machine.
"""

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.core.dataset import Dataset
from services.generator import invention
from services.generator.rhythm import Rhythm
from services.generator.rules import By, Choice, Constant, Now, Numbered, Object, Rule, Uuid

BLOCK_ROWS = 4096  # about 2 MB, which fit in a core's cache; memory does not depend on the row count
_TABLE_SPAN = 1 << 16  # a longer range of numbers is formatted, not looked up
_COUNTER_WORDS = 8  # 32-bit words of one Philox counter

_UUID_LENGTHS = {"a": 8, "b": 4, "c": 4, "d": 4, "e": 12}
_UUID_DIGITS = np.dtype([(name, f"S{length}") for name, length in _UUID_LENGTHS.items()])
_UUID_GROUPS = np.dtype(
    {
        "names": list(_UUID_LENGTHS),
        "formats": [f"S{length}" for length in _UUID_LENGTHS.values()],
        "offsets": [0, 9, 14, 19, 24],
        "itemsize": 36,
    }
)

Text = NDArray[np.bytes_]


def seed_or_clock(seed: int) -> int:
    """`seed`, or a seed from the clock when `seed` is 0. The seed is exact as a JSON number."""
    return seed or time.time_ns() // 1000


class Synthesizer:
    """Rows of one seeded table, whose row i has the time `start_us + i * step_us`, in microseconds. Thread-safe.

    With a `rhythm`, rows are as dense as it says, and `step_us` is their mean distance.
    `own_rules`: rules by column, in place of those of the dataset; columns without one get a rule by their kind.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        start_us: int,
        step_us: float,
        own_rules: Mapping[str, Rule] | None = None,
        rhythm: Rhythm | None = None,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        rules = invention.rules_of(dataset) if own_rules is None else invention.complete(dataset, own_rules)
        compiler = _Compiler(dataset, rules, _Time(start_us, step_us, rhythm))
        self._row = compiler.row()
        self._stride = -(-compiler.words // _COUNTER_WORDS)
        self._key = zlib.crc32(dataset.name.encode()) << 64 | seed

    def ndjson(self, first: int, count: int) -> bytes:
        """Rows first..first+count-1 in wire form, each ended by a newline."""
        last = first + count
        return b"".join(self._block(at, min(BLOCK_ROWS, last - at)) for at in range(first, last, BLOCK_ROWS))

    def lines(self, first: int, count: int) -> list[bytes]:
        """Return the same rows as separate JSON objects."""
        return self.ndjson(first, count).split(b"\n")[:-1]

    def _block(self, first: int, count: int) -> bytes:
        philox = np.random.Philox(key=self._key, counter=first * self._stride)
        raw = philox.random_raw(count * self._stride * _COUNTER_WORDS // 2)
        words = raw.astype("<u8", copy=False).view("<u4").reshape(count, -1)
        rows = _Rows(np.arange(first, first + count), np.ascontiguousarray(words.T))
        return self._row.render(rows).tobytes().translate(None, b"\0")


@dataclass(frozen=True, slots=True)
class _Rows:
    index: NDArray[np.int64]
    words: NDArray[np.uint32]  # [word, row]

    def where(self, chosen: NDArray[np.bool_]) -> "_Rows":
        return _Rows(self.index[chosen], self.words[:, chosen])


class _Segment(Protocol):
    width: int

    def render(self, rows: _Rows) -> Text:
        """Return one text of at most `width` bytes for each row, or a single text that all rows have."""


class _Literal:
    def __init__(self, text: bytes) -> None:
        self.text = text
        self.width = len(text)
        self._text = np.array(text)

    def render(self, rows: _Rows) -> Text:
        return self._text


class _Chosen:
    """One of `values` by weight; the random word `word` decides."""

    def __init__(self, word: int, choice: Choice) -> None:
        weights = choice.weights or (1.0,) * len(choice.values)
        if len(weights) != len(choice.values):
            raise ValueError(f"{len(choice.values)} values, {len(weights)} weights")
        total = sum(weights)
        self._word = word
        self._bounds = np.array([round(2**32 * sum_ / total) for sum_ in accumulate(weights)][:-1], np.uint64)
        self._texts = np.array([msgspec.json.encode(value) for value in choice.values])
        self.values = choice.values
        self.width = self._texts.itemsize

    def pick(self, rows: _Rows) -> NDArray[np.intp]:
        """Return the index in `values` of each row's value."""
        return np.asarray(np.searchsorted(self._bounds, rows.words[self._word], side="right"))

    def render(self, rows: _Rows) -> Text:
        return self._texts[self.pick(rows)]


class _Number:
    """A whole number in first..last, as bare digits."""

    def __init__(self, word: int, first: int, last: int) -> None:
        span = last - first + 1
        if not 1 <= span <= 2**32:
            raise ValueError(f"{first}..{last}: between 1 and 2**32 numbers are possible")
        self._word, self._first, self._span = word, first, np.uint64(span)
        self.width = max(len(str(first)), len(str(last)))
        self._texts = self._format(np.arange(span)) if span <= _TABLE_SPAN else None

    def _format(self, numbers: NDArray[Any]) -> Text:
        return (numbers.astype(np.int64) + self._first).astype(f"S{self.width}")

    def render(self, rows: _Rows) -> Text:
        numbers = rows.words[self._word].astype(np.uint64) * self._span >> np.uint64(32)
        return self._format(numbers) if self._texts is None else self._texts[numbers]


class _Uuid:
    """A version-4 UUID, made of four random words, of which `word` is the first."""

    width = 36

    def __init__(self, word: int) -> None:
        self._word = word

    def render(self, rows: _Rows) -> Text:
        words = rows.words[self._word : self._word + 4].T.astype(">u4")
        words[:, 1] = words[:, 1] & 0xFFFF0FFF | 0x00004000  # version 4
        words[:, 2] = words[:, 2] & 0x3FFFFFFF | 0x80000000  # the RFC's variant
        digits = np.frombuffer(words.tobytes().hex().encode(), _UUID_DIGITS)
        texts = np.full(len(digits), b"-" * self.width)
        groups = texts.view(_UUID_GROUPS)
        for name in _UUID_DIGITS.names or ():
            groups[name] = digits[name]
        return texts


class _Time:
    width = 26

    def __init__(self, start_us: int, step_us: float, rhythm: Rhythm | None) -> None:
        self._start = start_us if rhythm is None else rhythm.progress(start_us)
        self._step = step_us
        self._rhythm = rhythm

    def render(self, rows: _Rows) -> Text:
        times = self._start + np.rint(rows.index * self._step).astype(np.int64)
        if self._rhythm:
            times = self._rhythm.times(times)
        texts: Text = np.datetime_as_string(times.view("M8[us]"), unit="us").astype("S26")
        return texts


class _Sequence:
    """The texts of several segments, joined."""

    def __init__(self, *segments: _Segment) -> None:
        self._fields = {f"f{i}": segment for i, segment in enumerate(segments)}
        self._dtype = np.dtype([(name, f"S{segment.width}") for name, segment in self._fields.items()])
        self.width = self._dtype.itemsize

    def render(self, rows: _Rows) -> Text:
        texts = np.empty(len(rows.index), self._dtype)
        for name, segment in self._fields.items():
            texts[name] = segment.render(rows)
        return np.asarray(texts.view(f"S{self.width}"))


class _By:
    """The segment for the value that the row has in another column."""

    def __init__(self, chosen: _Chosen, cases: Mapping[str, _Segment], default: _Segment) -> None:
        self._chosen = chosen
        places = [chosen.values.index(value) for value in cases]
        self._case_of = np.zeros(len(chosen.values), np.intp)  # 0: the default
        self._case_of[places] = range(1, len(cases) + 1)
        self._segments = [default, *cases.values()]
        self.width = max(segment.width for segment in self._segments)

    def render(self, rows: _Rows) -> Text:
        case_of_row = self._case_of[self._chosen.pick(rows)]
        texts = np.empty(len(rows.index), f"S{self.width}")
        for case, segment in enumerate(self._segments):
            chosen = case_of_row == case
            if chosen.any():
                texts[chosen] = segment.render(rows.where(chosen))
        return texts


class _Compiler:
    """Turns rules into segments and assigns to each segment the words that it draws from."""

    def __init__(self, dataset: Dataset, rules: Mapping[str, Rule], time: _Time) -> None:
        self.words = 0
        self._time = time
        self._dataset = dataset
        self._rules = rules
        # First, because a By may name a column that comes after its own.
        self._chosen = {name: _Chosen(self._draw(1), rule) for name, rule in rules.items() if isinstance(rule, Choice)}

    def row(self) -> _Sequence:
        wire = {name: self._dataset.by_name[name].wire for name in self._rules}
        fields = {wire[name]: self._chosen.get(name) or self._segment(rule) for name, rule in self._rules.items()}
        return _Sequence(*_object(fields), _Literal(b"\n"))

    def _segment(self, rule: Rule) -> _Segment:
        match rule:
            case Constant(value):
                return _Literal(msgspec.json.encode(value))
            case Choice():
                return _Chosen(self._draw(1), rule)
            case Numbered(first, last, ""):
                return _Number(self._draw(1), first, last)
            case Numbered(first, last, prefix):
                opening = _Literal(msgspec.json.encode(prefix)[:-1])
                return _Sequence(opening, _Number(self._draw(1), first, last), _Literal(b'"'))
            case Uuid():
                return _Sequence(_Literal(b'"'), _Uuid(self._draw(4)), _Literal(b'"'))
            case Now():
                return _Sequence(_Literal(b'"'), self._time, _Literal(b'Z"'))
            case Object(fields):
                return _Sequence(*_object({name: self._segment(field) for name, field in fields.items()}))
            case By(column, cases, default):
                return self._by(column, cases, default)

    def _by(self, column: str, cases: Mapping[str, Rule], default: Rule) -> _Segment:
        start, end, segments = self.words, self.words, []
        for rule in (default, *cases.values()):  # a row takes one of them, so they may draw the same words
            self.words = start
            segments.append(self._segment(rule))
            end = max(end, self.words)
        self.words = end
        return _By(self._chosen[column], dict(zip(cases, segments[1:], strict=True)), segments[0])

    def _draw(self, words: int) -> int:
        self.words += words
        return self.words - words


def _object(fields: Mapping[str, _Segment]) -> list[_Segment]:
    parts: list[_Segment] = []
    for name, segment in fields.items():
        parts += [_Literal((b"," if parts else b"{") + msgspec.json.encode(name) + b":"), segment]
    return [*parts, _Literal(b"}" if parts else b"{}")]
