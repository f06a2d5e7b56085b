"""The Kafka messages of one batch: lines that share a partition, joined to NDJSON values of at most 512 KB."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from zlib import crc32

from services.core.dataset import Alert, Dataset
from services.core.ids import MAX_BATCH
from services.core.ports import Outgoing
from services.core.rows import Rows

MAX_VALUE_BYTES = 512 * 1024
COLUMNS = "columns"
"""The header that says how many columns the publisher knew: whoever knows fewer must not load the message."""
BATCH_KEY = "^[0-9]{1,11}:[0-9]{1,9}$"
"""Key of a message, <batch>:<part>: a pattern that Python and Java read alike. `ids.MAX_BATCH` has 11 digits."""
_SHOWN_BYTES = 100  # of a foreign key or header, in a reason
MAX_COLUMNS = 9999
"""The largest number of columns that is believed."""
_is_batch_key = re.compile(BATCH_KEY.encode()).search
_with_newline = (1).__add__  # a loop in C: this is done for every row


def partition_of(key: str, partitions: int) -> int:
    """The same everywhere and always, so that rows of one key stay in order."""
    return crc32(key.encode()) % partitions


def batch_key(batch_id: int, part: int) -> bytes:
    return b"%d:%d" % (batch_id, part)


def batch_of_key(key: bytes) -> int:
    """The batch a message belongs to; ValueError when the key is not one of ours."""
    batch_id = int(key.partition(b":")[0]) if _is_batch_key(key) else -1
    if not 0 <= batch_id <= MAX_BATCH:
        raise ValueError(f"the key {key[:_SHOWN_BYTES]!r} is not <batch>:<part>")
    return batch_id


def is_newer(headers: Mapping[str, bytes], dataset: Dataset) -> bool:
    """Whether a message may hold columns that this process does not know, and would leave out."""
    known = headers.get(COLUMNS, b"")
    return len(known) <= len(str(MAX_COLUMNS)) and known.isdigit() and int(known) > len(dataset.columns)


def messages(
    dataset: Dataset, batch_id: int, created_at: int, rows: Rows, lines: Sequence[bytes], partitions: int
) -> list[Outgoing]:
    """The batch's own messages, then those of its alerts. `lines[i]` is the line of row i."""
    created = b"%d" % created_at
    columns = dict(zip(dataset.by_name, rows.columns, strict=True))
    keys = columns[dataset.key]
    partition = {key: partition_of(key, partitions) for key in set(keys)}
    by_partition: defaultdict[int, list[bytes]] = defaultdict(list)
    for key, line in zip(keys, lines, strict=True):
        by_partition[partition[key]].append(line)
    made: list[Outgoing] = []
    for number, own in sorted(by_partition.items()):
        for value, count in _values(own):
            headers = {"created_at": created, "rows": b"%d" % count, COLUMNS: b"%d" % len(dataset.columns)}
            made.append(Outgoing(dataset.topic, number, batch_key(batch_id, len(made)), value, headers))
    if alert := dataset.alert:
        made += _alerts(alert, created, keys, columns[alert.column], lines, partitions)
    return made


def _alerts(
    alert: Alert, created: bytes, keys: Sequence[str], tested: Sequence[str], lines: Sequence[bytes], partitions: int
) -> Iterable[Outgoing]:
    by_key: defaultdict[str, list[bytes]] = defaultdict(list)
    for index in [index for index, value in enumerate(tested) if value == alert.value]:
        by_key[keys[index]].append(lines[index])
    for key, own in by_key.items():
        for value, count in _values(own):
            headers = {"created_at": created, "rows": b"%d" % count}
            yield Outgoing(alert.topic, partition_of(key, partitions), key.encode(), value, headers)


def _values(lines: Sequence[bytes]) -> Iterable[tuple[bytes, int]]:
    """NDJSON values of as many lines as fit, and how many those are."""
    ends = list(accumulate(map(_with_newline, map(len, lines))))
    start = 0
    while start < len(lines):
        used = ends[start - 1] if start else 0
        stop = max(start + 1, bisect_right(ends, used + MAX_VALUE_BYTES))
        yield b"\n".join(lines[start:stop]) + b"\n", stop - start
        start = stop
