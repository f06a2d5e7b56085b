"""The Kafka message of rows: its key, its headers and its value. No other module spells them.

A batch of rows is sent to the topic of its dataset, as one message or several. The rows that match the dataset's alert
are also sent to the topic of the alert.

- The key is `<batch>:<part>`, two decimal numbers. The parts of a batch are numbered from 0. In the topic of an alert,
  the key of a message is the key of its rows (for logs: the service).
- The value is NDJSON: lines as `rows.RowCodec` encodes them, each ended by a newline, MAX_VALUE_BYTES in all.
- The headers are decimal numbers in ASCII. `created_at` is when the batch was accepted, in microseconds since 1970.
  `rows` is the number of lines. `columns` is the number of the dataset's columns that the writer knew; messages of an
  alert do not have it. `version` is the version of this form. A message without it is of version 1.
- One more header, `xxh3`, is the XXH3 hash of the value, as 16 hexadecimal digits. A message without it, or with
  another one, comes from another program or an earlier release: a line may be invalid.

A reader must not load a message of a newer version, or with more columns than it knows: it would leave something out.
A reader believes a newer version or more columns only if the message has the hash of its value. The hash says who wrote
the message. It is no protection against a program that forges it, and such a program can stop the readers.
Every version keeps the key, `created_at`, `rows` and `xxh3` as they are here. So an older publisher can tell which of
its batches are in the topic (`announced`), and an older reader can tell a newer version.

The functions are pure. The committer, the publisher and Spark's warm-up call `encode`; stream-to-store calls `decode`.
The publisher reads only the key and the number of rows of a message (`announced`); alerting reads the version and
the lines. Spark decodes by expressions of its own (`spark_jobs/parsing.py`), made of the constants here.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np
import xxhash

from services.core.dataset import Alert, Dataset
from services.core.ids import MAX_BATCH, MAX_BATCH_ROWS
from services.core.line_fields import INSTANTS
from services.core.ports import Message, OutgoingMessage
from services.core.rows import Rows

VERSION = 1
"""The version that is written here, and the newest one that is read here."""

MAX_VALUE_BYTES = 512 * 1024
"""A value has at most so many bytes, and at most MAX_BATCH_ROWS lines. No store loads a larger message."""

CREATED_AT_HEADER = "created_at"
ROWS_HEADER = "rows"
COLUMNS_HEADER = "columns"
VERSION_HEADER = "version"
HASH_HEADER = "xxh3"
HASH_DIGITS = 16
HASH_PATTERN = f"^[0-9a-f]{{{HASH_DIGITS}}}"
"""How each value of HASH_HEADER begins, for a reader that cannot compute the hash. It has HASH_DIGITS bytes."""

MAX_NUMBER = 9999
"""The largest number in the header `columns` or `version` that is believed. A larger one is ignored."""

KEY_PATTERN = "^[0-9]{1,11}:[0-9]{1,9}(?![^:]|:)"
"""The keys of a dataset's topic: a pattern that Python and Java read alike. `ids.MAX_BATCH` has 11 digits.

The end says that no character follows. `$` would also match before a last line break, of which Java knows more than
Python, and Spark takes the backslash of a pattern for its own.
"""
KEY_SEPARATOR = ":"

_MOST_DIGITS = 18  # of a number that Spark reads as a BIGINT
_SHOWN_BYTES = 100  # of a key that is not of our form, in a reason
_is_batch_key = re.compile(KEY_PATTERN.encode()).search


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message of a dataset's topic, decoded except for its lines.

    `batch_id` is None when the key is not of our form. `created_at` is in microseconds. `rows` is the number of lines
    of the value. `problem` says why the message can never be loaded; it is '' for a message that can be loaded.
    """

    message: Message
    batch_id: int | None
    created_at: int
    rows: int
    problem: str = ""

    @property
    def matches_hash(self) -> bool:
        """Whether the value has the hash in its header, as `encode` makes it. A copy of a message has it, too."""
        return _matches_hash(self.message)


def encode(
    dataset: Dataset, batch_id: int, created_at: int, rows: Rows, lines: Sequence[bytes], partitions: int
) -> list[OutgoingMessage]:
    """Return the messages of a batch for the dataset's topic, then those for the topic of its alert.

    `lines[i]` is the line of row i. `created_at` is in microseconds. Each topic has `partitions` partitions.
    """
    columns = dict(zip(dataset.by_name, rows.columns, strict=True))
    keys = columns[dataset.key]
    partition = {key: partition_of(key, partitions) for key in set(keys)}
    by_partition: defaultdict[int, list[bytes]] = defaultdict(list)
    for key, line in zip(keys, lines, strict=True):
        by_partition[partition[key]].append(line)
    common = {CREATED_AT_HEADER: b"%d" % created_at, VERSION_HEADER: b"%d" % VERSION}
    own = {**common, COLUMNS_HEADER: b"%d" % len(dataset.columns)}
    made: list[OutgoingMessage] = []
    for number, some in sorted(by_partition.items()):
        for value, count in _values(some):
            headers = {**own, ROWS_HEADER: b"%d" % count, HASH_HEADER: value_hash(value)}
            made.append(OutgoingMessage(dataset.topic, number, batch_key(batch_id, len(made)), value, headers))
    if alert := dataset.alert:
        made += _alerts(alert, common, keys, columns[alert.column], lines, partitions)
    return made


def decode(message: Message) -> Envelope:
    """Decode a message of a dataset's topic, which any program may have written. The lines are not decoded."""
    rows = message.value.count(b"\n")
    if message.problem:
        return Envelope(message, None, 0, rows, message.problem)
    try:
        batch_id = batch_of_key(message.key)
    except ValueError as error:
        return Envelope(message, None, 0, rows, str(error))
    created_at, announced_rows = (_number(message.headers, name) for name in (CREATED_AT_HEADER, ROWS_HEADER))
    if created_at is None or announced_rows is None:
        name = CREATED_AT_HEADER if created_at is None else ROWS_HEADER
        if name not in message.headers:
            return Envelope(message, batch_id, 0, rows, f"there is no header {name!r}")
        reason = f"the header {name} is not a number of at most {_MOST_DIGITS} decimal digits"
        return Envelope(message, batch_id, 0, rows, reason)
    problem = ""
    if not INSTANTS.lowest <= created_at <= INSTANTS.highest:
        problem = f"created_at {created_at} {INSTANTS.problem}"
    elif announced_rows != rows or not message.value.endswith(b"\n"):
        problem = f"the header announces {announced_rows} lines, the value has {rows}"
    else:
        problem = size_problem(message.value)
    return Envelope(message, batch_id, created_at, rows, problem)


def size_problem(value: bytes) -> str:
    """Return why the value of a message is larger than any value that `encode` makes; '' if it is not larger."""
    if len(value) > MAX_VALUE_BYTES:
        return f"the value has {len(value)} bytes, more than {MAX_VALUE_BYTES}"
    if (rows := value.count(b"\n")) > MAX_BATCH_ROWS:
        return f"the value has {rows} lines, more than {MAX_BATCH_ROWS}"
    return ""


class Announced(NamedTuple):
    """What the key and the headers of a message say: its batch, when that was accepted (microseconds), and its rows."""

    batch_id: int
    created_at: int
    rows: int


def announced(message: Message) -> Announced | None:
    """Return what a message says about itself; None of a foreign message.

    For the publisher, which counts a batch's messages. It holds for messages of newer versions, too.
    """
    created_at, rows = (_number(message.headers, name) for name in (CREATED_AT_HEADER, ROWS_HEADER))
    if created_at is None or rows is None:
        return None
    try:
        return Announced(batch_of_key(message.key), created_at, rows)
    except ValueError:
        return None


def has_newer_version(message: Message) -> bool:
    """Return whether a message of any of the topics is of a newer version than VERSION.

    A message without the headers that every version keeps, or without the hash of its value, is foreign. Its version
    is not believed.
    """
    kept = (_number(message.headers, name) for name in (CREATED_AT_HEADER, ROWS_HEADER))
    return _believed(message.headers, VERSION_HEADER) > VERSION and None not in kept and _matches_hash(message)


def is_newer(message: Message, dataset: Dataset) -> bool:
    """Return whether a message of the dataset's topic has a newer version, or more columns than `dataset` has here.

    A foreign message is not newer, whatever its headers say.
    """
    if has_newer_version(message):
        return decode(message).batch_id is not None
    if _believed(message.headers, COLUMNS_HEADER) <= len(dataset.columns):
        return False
    return _matches_hash(message) and not decode(message).problem


def batch_key(batch_id: int, part: int) -> bytes:
    return b"%d:%d" % (batch_id, part)


def batch_of_key(key: bytes) -> int:
    """Return the batch of a message with this key. Raises ValueError for a key that is not of our form."""
    batch_id = int(key.partition(b":")[0]) if _is_batch_key(key) else -1
    if not 0 <= batch_id <= MAX_BATCH:
        raise ValueError(f"the key {key[:_SHOWN_BYTES]!r} is not <batch>:<part>")
    return batch_id


def partition_of(key: str, partitions: int) -> int:
    """Return the partition of rows with this key. Rows of one key keep their order while `partitions` is the same."""
    return crc32(key.encode()) % partitions


def join(lines: Sequence[bytes]) -> bytes:
    """Return the value of these lines, which have no newlines."""
    return b"\n".join([*lines, b""])


def split(value: bytes) -> list[bytes]:
    """Return the lines of a value, without their newlines. A last line without a newline is a line, too."""
    lines = value.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def value_hash(value: bytes) -> bytes:
    """Return what the header HASH_HEADER is for a value."""
    return xxhash.xxh3_64_hexdigest(value).encode()


def _alerts(
    alert: Alert,
    common: Mapping[str, bytes],
    keys: Sequence[str],
    tested: Sequence[str],
    lines: Sequence[bytes],
    partitions: int,
) -> Iterable[OutgoingMessage]:
    by_key: defaultdict[str, list[bytes]] = defaultdict(list)
    for index in [index for index, value in enumerate(tested) if value == alert.value]:
        by_key[keys[index]].append(lines[index])
    for key, own in by_key.items():
        for value, count in _values(own):
            headers = {**common, ROWS_HEADER: b"%d" % count, HASH_HEADER: value_hash(value)}
            yield OutgoingMessage(alert.topic, partition_of(key, partitions), key.encode(), value, headers)


def _values(lines: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield values of as many lines as fit, each with the number of its lines."""
    if sum(map(len, lines)) + len(lines) <= MAX_VALUE_BYTES:
        yield join(lines), len(lines)
        return
    ends = (np.fromiter(map(len, lines), np.int64, len(lines)) + 1).cumsum()
    start = 0
    while start < len(lines):
        used = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(ends.searchsorted(used + MAX_VALUE_BYTES, "right")))
        yield join(lines[start:stop]), stop - start
        start = stop


def _matches_hash(message: Message) -> bool:
    return message.headers.get(HASH_HEADER) == value_hash(message.value)


def _number(headers: Mapping[str, bytes], name: str, most_digits: int = _MOST_DIGITS) -> int | None:
    """Return the number in the header, None if the header is missing or is not decimal digits in ASCII.

    `int` alone would accept other spellings, for example `1_0`, which Spark does not accept.
    """
    text = headers.get(name, b"")
    return int(text) if text.isdigit() and len(text) <= most_digits else None


def _believed(headers: Mapping[str, bytes], name: str) -> int:
    """Return the number in the header, 0 when there is none that is believed."""
    return _number(headers, name, len(str(MAX_NUMBER))) or 0
