"""What a replay changes in a sink's positions, in the transaction that notes the replay in the ledger.

The positions name what the stream loads; the replay brings all other batches. A consumer that still uses the old
positions is fenced.
"""

from collections.abc import Mapping

from services.core.dataset import Dataset
from services.postgres.connection import Connection

_SKIP = """
    WITH kept AS (
        SELECT * FROM unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(ends)s::bigint[]) AS kept(of, first, end_)),
    broken AS (
        SELECT unnest(coalesce(intent_together, ARRAY[partition])) AS of FROM sink_progress JOIN kept ON of = partition
        WHERE store = %(store)s AND dataset = %(dataset)s AND next_offset NOT BETWEEN first AND end_)
    UPDATE sink_progress
    SET next_offset = least(greatest(first, next_offset, intent_last + 1), end_), updated_at = now(),
        intent_first = NULL, intent_last = NULL, intent_together = NULL
    FROM kept
    WHERE store = %(store)s AND dataset = %(dataset)s AND partition = of AND of IN (SELECT of FROM broken)"""


def former_topic(connection: Connection, store: str, dataset: str, topic_id: str) -> str | None:
    """Return the id of the topic that the positions count in, if it is not `topic_id`."""
    row = connection.execute(
        "SELECT topic_id FROM sink_progress WHERE store = %s AND dataset = %s AND topic_id <> %s LIMIT 1",
        (store, dataset, topic_id),
    ).fetchone()
    return row[0] if row else None


def bind_topic(connection: Connection, store: str, dataset: Dataset, former: str, topic_id: str) -> None:
    """Drop the positions in the topic `former`. Its number comes first in table `topics`: see `topics`."""
    connection.execute("DELETE FROM sink_progress WHERE store = %s AND dataset = %s", (store, dataset.name))
    for known in (former, topic_id):
        connection.execute(
            "INSERT INTO topics (name, topic_id) VALUES (%s, %s) ON CONFLICT DO NOTHING", (dataset.topic, known)
        )


def bind_table(connection: Connection, store: str, dataset: str, table_id: str) -> bool:
    """Bind the positions to the table `table_id`; return whether they were bound to another table.

    The table lacks rows that the positions count until the replay has filled it; the replay holds the watermark.
    """
    values = {"store": store, "dataset": dataset, "table_id": table_id}
    former = connection.execute(
        "SELECT table_id FROM sink_progress WHERE store = %(store)s AND dataset = %(dataset)s", values
    ).fetchall()
    connection.execute(
        "UPDATE sink_progress SET table_id = %(table_id)s WHERE store = %(store)s AND dataset = %(dataset)s", values
    )
    return any(bound not in ("", table_id) for (bound,) in former)


def skip(
    connection: Connection,
    store: str,
    dataset: str,
    topic_id: str,
    table_id: str,
    bounds: Mapping[int, tuple[int, int]],
) -> None:
    """Skip messages that the topic no longer has. `bounds`: partition -> first offset kept, end; no sink may run.

    A partition without a position begins at its end, and so does a partition that was cut before its position. A
    partition whose next messages were deleted goes on at the first offset kept, and after its pending range: that range
    cannot be written again as it was, and neither can the other pending ranges of its block group.
    """
    firsts, ends = zip(*bounds.values(), strict=True)
    connection.execute(
        "INSERT INTO sink_progress (store, dataset, topic_id, table_id, partition, next_offset)"
        " SELECT %s, %s, %s, %s, * FROM unnest(%s::int[], %s::bigint[]) ON CONFLICT DO NOTHING",
        (store, dataset, topic_id, table_id, list(bounds), list(ends)),
    )
    places = {
        "store": store,
        "dataset": dataset,
        "partitions": list(bounds),
        "firsts": list(firsts),
        "ends": list(ends),
    }
    connection.execute(_SKIP, places)
