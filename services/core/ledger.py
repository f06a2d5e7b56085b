"""Values of the ledger: what was accepted, where it was published, and which offsets each sink has loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

LEDGER_HEADER = "Logpipe-Ledger"
"""The HTTP header with a ledger's id. Replies of the ingest API name the ledger that it writes to, '' while it has not
read the id; a request may name the ledger that its rows are meant for."""

FORMER_LEDGERS_HEADER = "Logpipe-Former-Ledgers"
"""The HTTP header with the ids, comma-separated, that the ledger had before it was restored from backups. The reply of
the ingest API to a health check has it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One Kafka message of a batch.

    If the message was deleted before its offset was recorded, `offset` is the highest offset that it can have had.
    """

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one dataset that one transaction accepted. `created_at` in microseconds, UTC.

    `parts` is None until the batch is published. `checksum`: see `rows.checksum`.
    """

    batch_id: int
    slot: int
    dataset: str
    rows: int
    checksum: int
    created_at: int
    parts: tuple[Part, ...] | None = None


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets of one partition, both included; control records leave gaps in between."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class SinkPosition:
    """The position of a sink in one partition: all messages below `next_offset` are loaded.

    `pending` is the range whose write was begun and is not confirmed. This range must be completed before any other
    range is written, together with the pending ranges of all `group_partitions`, which include this partition.
    """

    partition: int
    next_offset: int
    pending: OffsetRange | None = None
    group_partitions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StorePosition:
    """The offsets up to which a store has loaded a topic, with the ids of the topic and of the table.

    `offsets`: partition -> first offset not yet loaded, of the topic `topic_id`. `table_id` changes when the table is
    created again or emptied in order to be filled again. Both ids are '' where nothing is known of them yet.
    """

    table_id: str
    topic_id: str
    offsets: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Source:
    """A foreign topic whose messages become rows of a dataset. `topic_id` is the identity of the present topic."""

    topic: str
    topic_id: str
    dataset: str


@dataclass(frozen=True, slots=True)
class SourceRange:
    """The messages of one partition of a source from offset `first` up to `next_offset`, which is not included.

    They have `lines` lines. Of these, `rows` are rows of the dataset, and `dead_letters` are dead letters.
    """

    partition: int
    first: int
    next_offset: int
    lines: int = 0
    rows: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class SourceAdvance:
    """The messages of a source whose rows one transaction accepts: at most one range of each partition."""

    source: Source
    ranges: tuple[SourceRange, ...]
