"""The index of the dead letters in PostgreSQL, so that no process has to read their topic from its beginning.

A process that needs the dead letters first updates the index (`update`), which reads only new dead letters.
Several processes may do so at once. Dead letters of batches below the floor are deleted from the index (`forget`), and
then from the topic.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from services.core.dead_letter import DeadLettered
from services.core.errors import StoreDown
from services.core.ports import PartitionReader
from services.postgres.connection import Connection, translated
from services.postgres.deletion import delete_in_chunks
from services.streams.dead_letters import TOPIC, StoredDeadLetter, read

_NO_BATCH, _NO_LINE = -1, -1
_FORGOTTEN_AT_ONCE = 10_000  # a longer transaction would hold up the watermarks

_INSERT = """INSERT INTO dead_letters AS known
                 (store, dataset, batch_id, topic, partition, "offset", line, row_id, rows, letter)
             VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
             ON CONFLICT (store, dataset, batch_id, topic, partition, "offset", line)
             DO UPDATE SET letter = greatest(known.letter, excluded.letter),
                           rows = greatest(known.rows, excluded.rows)"""
_FORGET = """DELETE FROM dead_letters WHERE ctid = ANY(ARRAY(
                 SELECT ctid FROM dead_letters WHERE dataset = %s AND (
                     batch_id BETWEEN 0 AND %s - 1 OR batch_id = -1 AND indexed_at < (
                         SELECT to_timestamp(dropped_until / 1e6) FROM floors WHERE dataset = %s))
                 LIMIT %s))"""


class Needed(NamedTuple):
    """The lowest offset of the topic `topic_id` whose dead letter is still in the index, or not indexed yet."""

    topic_id: str
    offset: int


def update(connection: Connection, topic: PartitionReader) -> None:
    """Index every dead letter that was committed to `topic` before this call, and close `topic`. Raises StoreDown.

    No transaction is open while the topic is read. A topic that was deleted and created again is read from its start.
    The dead letters of the old topic stay, because what they say is still true.
    """
    with closing(topic), translated():
        topic_id = topic.topic_id()
        for dead_letters, end in read(topic, _start(connection, topic_id)):
            _add(connection, topic_id, dead_letters, end)


def dead_lettered(
    connection: Connection, store: str, dataset: str, batches: Sequence[int] | None = None
) -> list[DeadLettered]:
    """Return the dead-lettered rows of the dataset in one store, of all indexed batches or of `batches` only."""
    query = "SELECT batch_id, row_id, rows FROM dead_letters WHERE store = %s AND dataset = %s AND batch_id >= 0"
    with translated():
        if batches is None:
            found = connection.execute(query, (store, dataset))
        else:
            found = connection.execute(f"{query} AND batch_id = ANY(%s)", (store, dataset, list(batches)))
        return [DeadLettered(*row) for row in found]


def lines_of_topic(connection: Connection, store: str, dataset: str, topic: str) -> int:
    """Return how many lines of messages of `topic` the indexed dead letters without a batch stand for."""
    query = """SELECT coalesce(sum(rows), 0) FROM dead_letters
               WHERE store = %s AND dataset = %s AND batch_id = %s AND topic = %s"""
    with translated():
        row = connection.execute(query, (store, dataset, _NO_BATCH, topic)).fetchone()
    assert row is not None
    return int(row[0])


def forget(connection: Connection, dataset: str, floor: int) -> int:
    """Delete the dead letters of batches below `floor`, and those as old without a batch, and return how many."""
    return delete_in_chunks(connection, _FORGET, (dataset, floor, dataset), _FORGOTTEN_AT_ONCE)


def needed(connection: Connection) -> Needed | None:
    """Return which dead letters of the topic are still needed; None while no dead letter was indexed."""
    query = "SELECT topic_id, coalesce((SELECT min(letter) FROM dead_letters), next_offset) FROM dead_letter_index"
    with translated():
        row = connection.execute(query).fetchone()
    return Needed(*row) if row else None


def _start(connection: Connection, topic_id: str) -> int:
    """Return the first offset that is not indexed."""
    with connection.transaction():
        connection.execute(
            "INSERT INTO dead_letter_index (topic_id, next_offset) VALUES (%s, 0) ON CONFLICT DO NOTHING", (topic_id,)
        )
        other_topic = connection.execute(
            "UPDATE dead_letter_index SET topic_id = %s, next_offset = 0 WHERE topic_id <> %s", (topic_id, topic_id)
        )
        if other_topic.rowcount:
            connection.execute("UPDATE dead_letters SET letter = NULL WHERE letter IS NOT NULL")
        row = connection.execute("SELECT next_offset FROM dead_letter_index").fetchone()
    assert row is not None
    return int(row[0])


def _add(connection: Connection, topic_id: str, dead_letters: Sequence[StoredDeadLetter], end: int) -> None:
    """Index the dead letters below `end`. It changes nothing if another process has indexed them."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(_INSERT, list(_values(dead_letters)))
        cursor.execute(
            "UPDATE dead_letter_index SET next_offset = greatest(next_offset, %s) WHERE topic_id = %s", (end, topic_id)
        )
        if cursor.rowcount == 0:
            raise StoreDown("kafka", f"topic {TOPIC} was deleted and created again while it was read")


def _values(dead_letters: Sequence[StoredDeadLetter]) -> Iterator[tuple[Any, ...]]:
    for offset, record in dead_letters:
        batch_id = _NO_BATCH if record.batch_id is None else record.batch_id
        line = _NO_LINE if record.line is None else record.line
        place = (record.topic, record.partition, record.offset, line)
        yield (record.store, record.dataset, batch_id, *place, record.id, record.rows, offset)
