"""The offsets up to which foreign topics were taken into datasets, and how many lines were read.

A position is changed by compare-and-set in the transaction that accepts the rows of the messages below it. So a message
is accepted once, whatever happens to the process that reads it, and a process that lost a partition is fenced.

An offset counts in the topic that has the id which is stored with it. A topic that was created again, that was cut, or
that has lost messages which were not read is refused until an operator has decided (`resume`).
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from services.core.errors import Fenced, NeedsOperator, StoreDown
from services.core.ledger import Source, SourceAdvance
from services.ledger import schema
from services.postgres.connection import Connection, Cursor, translated

Bounds = Mapping[int, tuple[int, int]]
"""Partition -> (first offset that the topic keeps, end of its log)."""

# The rows are locked in the order of partitions, so that two processes cannot wait for each other.
_ADVANCE = """
    UPDATE source_progress
    SET next_offset = until, lines = source_progress.lines + more_lines, rows = source_progress.rows + more_rows,
        dead_letters = source_progress.dead_letters + more_dead_letters, updated_at = now()
    FROM unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(untils)s::bigint[], %(lines)s::bigint[],
                %(rows)s::bigint[], %(dead_letters)s::bigint[])
        AS wanted(wanted_partition, first, until, more_lines, more_rows, more_dead_letters),
         (SELECT partition AS locked_partition FROM source_progress
          WHERE topic = %(topic)s AND dataset = %(dataset)s AND partition = ANY(%(partitions)s)
          ORDER BY partition FOR UPDATE) AS found
    WHERE topic = %(topic)s AND dataset = %(dataset)s AND topic_id = %(topic_id)s AND partition = wanted_partition
      AND locked_partition = wanted_partition AND next_offset = first"""
_INSERT = """
    INSERT INTO source_progress (topic, dataset, topic_id, partition, next_offset)
    SELECT %s, %s, %s, partition, next_offset FROM unnest(%s::int[], %s::bigint[]) AS start(partition, next_offset)
    ON CONFLICT DO NOTHING"""
_RESUME = """
    UPDATE source_progress SET topic_id = %s, next_offset = resumed, resumed_at = now(), updated_at = now()
    FROM unnest(%s::int[], %s::bigint[]) AS wanted(wanted_partition, resumed)
    WHERE topic = %s AND dataset = %s AND partition = wanted_partition"""
_CREATED_AGAIN = "topic {source.topic} was created again since it was read into {source.dataset}"
_SELECT = "SELECT partition, topic_id, next_offset FROM source_progress WHERE topic = %s AND dataset = %s"


class SourceCounts(NamedTuple):
    """What was read of one topic for one dataset, over all partitions and since the first start.

    `is_resumed`: an operator let the source go on in another topic, or after messages that were not read.
    """

    topic: str
    dataset: str
    lines: int
    rows: int
    dead_letters: int
    is_resumed: bool


class Resumed(NamedTuple):
    """The position of a partition before and after `resume`. `before` is None where there was none."""

    partition: int
    before: int | None
    after: int


def load(
    connection: Connection, source: Source, bounds: Bounds, partitions: Collection[int], *, at_end: bool = False
) -> dict[int, int]:
    """Return partition -> the offset to read from, for `partitions`. Positions that are missing are stored first.

    A source that has no position yet begins at the first messages that are kept, or `at_end`: then at the present ends
    of all partitions. A partition that the topic gets later begins at its first message in both cases.

    Raises NeedsOperator, which names the command, if the positions do not fit the topic. Raises StoreDown.
    """
    schema.require(connection)
    key = (source.topic, source.dataset)
    with translated(), connection.transaction():
        is_new = not _checked(connection.execute(_SELECT, key).fetchall(), source, bounds)
        starts = {partition: end if at_end and is_new else first for partition, (first, end) in bounds.items()}
        connection.execute(_INSERT, (*key, source.topic_id, list(starts), list(starts.values())))
        positions = _checked(connection.execute(_SELECT, key).fetchall(), source, bounds)
    if missing := set(partitions) - positions.keys():
        raise StoreDown("kafka", f"topic {source.topic} does not tell the bounds of partitions {sorted(missing)} yet")
    return {partition: positions[partition] for partition in partitions}


def advance(cursor: Cursor, taken: SourceAdvance) -> None:
    """Move the positions over the ranges, and add to the counts, in the transaction of `cursor`.

    Raises Fenced unless each range begins at its partition's position in the same topic; the transaction must then be
    rolled back. psycopg's errors are not translated.
    """
    source, ranges = taken.source, taken.ranges
    cursor.execute(
        _ADVANCE,
        {
            "topic": source.topic,
            "dataset": source.dataset,
            "topic_id": source.topic_id,
            "partitions": [each.partition for each in ranges],
            "firsts": [each.first for each in ranges],
            "untils": [each.next_offset for each in ranges],
            "lines": [each.lines for each in ranges],
            "rows": [each.rows for each in ranges],
            "dead_letters": [each.dead_letters for each in ranges],
        },
    )
    if cursor.rowcount != len(ranges):
        raise Fenced(
            f"partitions {[each.partition for each in ranges]} of {source.topic} are no longer at the positions that"
            " were loaded"
        )


def advance_alone(connection: Connection, taken: SourceAdvance) -> None:
    """Do what `advance` does, in a transaction of its own: the messages have no rows. Raises Fenced and StoreDown."""
    with translated(), connection.transaction(), connection.cursor() as cursor:
        advance(cursor, taken)


def resume(connection: Connection, source: Source, bounds: Bounds) -> list[Resumed]:
    """Let the source go on in the topic as it is now; return the positions that changed.

    In a topic that was created again, every partition begins at the first message that is kept. In the same topic, a
    partition whose next messages were deleted goes on at the first message that is kept, and a partition that was cut
    goes on at its end. A position that fits stays. A process that still reads the topic is fenced. Raises StoreDown.
    """
    schema.require(connection)
    key = (source.topic, source.dataset)
    with translated(), connection.transaction():
        before = {
            partition: (topic_id, next_offset)
            for partition, topic_id, next_offset in connection.execute(f"{_SELECT} FOR UPDATE", key)
        }
        changed = []
        for partition, (first, end) in bounds.items():
            topic_id, next_offset = before.get(partition, (source.topic_id, None))
            if topic_id != source.topic_id or next_offset is None:
                changed.append(Resumed(partition, next_offset, first))
            elif not first <= next_offset <= end:
                changed.append(Resumed(partition, next_offset, min(max(next_offset, first), end)))
        starts = [each for each in changed if each.before is None]
        connection.execute(
            _INSERT, (*key, source.topic_id, [each.partition for each in starts], [each.after for each in starts])
        )
        moved = [each for each in changed if each.before is not None]
        connection.execute(
            _RESUME, (source.topic_id, [each.partition for each in moved], [each.after for each in moved], *key)
        )
        # The new topic may have fewer partitions. Their counts stay true, and their offsets mean nothing any more.
        connection.execute(
            "UPDATE source_progress SET topic_id = %s, next_offset = 0, resumed_at = now()"
            " WHERE topic = %s AND dataset = %s AND topic_id <> %s",
            (source.topic_id, *key, source.topic_id),
        )
    return changed


def counts(connection: Connection, dataset: str) -> list[SourceCounts]:
    """Return the counts of each source of the dataset. Raises StoreDown."""
    query = """SELECT topic, dataset, sum(lines)::bigint, sum(rows)::bigint, sum(dead_letters)::bigint,
                      bool_or(resumed_at IS NOT NULL)
               FROM source_progress WHERE dataset = %s GROUP BY topic, dataset ORDER BY topic"""
    with translated():
        return [SourceCounts(*row) for row in connection.execute(query, (dataset,))]


def created_again(source: Source) -> NeedsOperator:
    """Return the error about a topic that has another id than the source's."""
    return NeedsOperator(f"{_CREATED_AGAIN.format(source=source)}: {_what_to_do(source)}")


def _checked(found: Iterable[tuple[int, str, int]], source: Source, bounds: Bounds) -> dict[int, int]:
    """Return partition -> position. Raises NeedsOperator if a position does not fit the topic."""
    positions = {}
    for partition, topic_id, next_offset in found:
        if reason := _misfit(source, topic_id, partition, next_offset, bounds):
            raise NeedsOperator(f"{reason}: {_what_to_do(source)}")
        positions[partition] = next_offset
    return positions


def _misfit(source: Source, topic_id: str, partition: int, next_offset: int, bounds: Bounds) -> str | None:
    """Return why a position cannot be read on from; None if it can."""
    if topic_id != source.topic_id:
        return _CREATED_AGAIN.format(source=source)
    if partition not in bounds:
        return None if next_offset == 0 else f"topic {source.topic} has no partition {partition} any more"
    first, end = bounds[partition]
    read = f"partition {partition} of {source.topic} was read into {source.dataset} up to {next_offset}"
    if next_offset > end:
        return f"{read}, and ends at {end}: the topic was cut"
    if next_offset < first:
        return f"{read}, and begins at {first}: messages were deleted before they were read"
    return None


def _what_to_do(source: Source) -> str:
    return (
        f"stop this process, run `logpipe kafka-source --topic {source.topic} --dataset {source.dataset} --resume`,"
        " which says from where it is read on, and start it again"
    )
