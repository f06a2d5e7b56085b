"""The rows that the control arms write: invented rows of logs, in the form that each component receives."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from services import datasets
from services.core.dataset import Dataset
from services.core.rows import RowCodec, Rows
from services.generator.synthesis import Synthesizer

REQUEST_ROWS = 1000
"""Rows of one request, and so of one batch: the default of `write.request_rows` in a plan."""


class MadeBatch(NamedTuple):
    """A batch as the committer makes it of a request. `created_at`: microseconds. `lines`: without newlines."""

    batch_id: int
    created_at: int
    rows: Rows
    lines: list[bytes]


def dataset() -> Dataset:
    return datasets.find("logs")


def wire_lines(count: int) -> list[bytes]:
    """Return rows as a client sends them, one JSON object each."""
    return _synthesizer().lines(0, count)


def batches(count: int) -> Iterator[MadeBatch]:
    """Yield `count` rows in batches of REQUEST_ROWS."""
    codec, made_up, created_at = RowCodec(dataset()), _synthesizer(), time.time_ns() // 1000
    for batch_id, first in enumerate(range(0, count, REQUEST_ROWS), 1):
        rows = codec.decode_lines(made_up.ndjson(first, min(REQUEST_ROWS, count - first)))
        yield MadeBatch(batch_id, created_at, rows, codec.encode(rows.tuples(batch_id, created_at)))


def stored_lines(count: int) -> bytes:
    """Return rows as NDJSON with ids, as they are in Kafka."""
    return b"".join(line + b"\n" for batch in batches(count) for line in batch.lines)


def _synthesizer() -> Synthesizer:
    return Synthesizer(dataset(), seed=1, start_us=time.time_ns() // 1000, step_us=100)
