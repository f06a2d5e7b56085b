"""The topics that batches were published to. A topic that was deleted and created again is another one."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.postgres.connection import Connection, translated

UNKNOWN = "unknown"
"""The id of a deleted topic, to which a release published that did not record the ids of topics."""


@dataclass(frozen=True, slots=True)
class NumberedTopic:
    """`number` is how `batches.topic` refers to the topic."""

    number: int
    topic_id: str


def register(connection: Connection, dataset: str, name: str, topic_id: str, ends: Mapping[int, int]) -> NumberedTopic:
    """Return the present topic of `dataset`. `ends`: partition -> end of its log. Raises StoreDown.

    Earlier releases wrote the positions of slots without the topic's id. These positions are bound to the present topic
    if it reaches up to all of them. Otherwise they belong to a deleted topic. That topic is then registered before the
    present one, because the batches of those releases belong to the topic with the lowest number.
    """
    with translated(), connection.transaction():
        connection.execute("LOCK TABLE topics IN SHARE ROW EXCLUSIVE MODE")
        fits = connection.execute(
            """SELECT coalesce(bool_and(next_offset <= coalesce(log_end, -1)), true)
               FROM slot_positions LEFT JOIN unnest(%(partitions)s::int[], %(ends)s::bigint[])
                    AS present(partition, log_end) USING (partition)
               WHERE dataset = %(dataset)s AND topic_id = ''""",
            {"dataset": dataset, "partitions": list(ends), "ends": list(ends.values())},
        ).fetchone()
        bound_to = topic_id if fits == (True,) else UNKNOWN
        if bound_to == UNKNOWN:
            number(connection, name, UNKNOWN)
        connection.execute(
            "UPDATE slot_positions SET topic_id = %s WHERE dataset = %s AND topic_id = ''", (bound_to, dataset)
        )
        return NumberedTopic(number(connection, name, topic_id), topic_id)


def number(connection: Connection, name: str, topic_id: str) -> int:
    """Return the number of this topic, and give the topic a number at the first call. Raises StoreDown."""
    with translated():
        connection.execute(
            "INSERT INTO topics (name, topic_id) SELECT %s, %s WHERE NOT EXISTS"
            " (SELECT FROM topics WHERE name = %s AND topic_id = %s) ON CONFLICT DO NOTHING",
            (name, topic_id, name, topic_id),
        )
        row = connection.execute(
            "SELECT number FROM topics WHERE name = %s AND topic_id = %s", (name, topic_id)
        ).fetchone()
    assert row is not None
    return int(row[0])
