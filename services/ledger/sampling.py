"""Choosing batches of the ledger at random, at a cost that does not depend on how many there are."""

import random

from services.core.ledger import Batch
from services.ledger.reading import Connection
from services.postgres.connection import translated

_IDS_AT_ONCE = 2_000
_ATTEMPTS = 50  # of so many ids: a dataset that has fewer than one id in a thousand may get a smaller sample

_BY_IDS = """SELECT batch_id, slot, dataset, rows, checksum, created_at FROM batches
             WHERE batch_id = ANY(%s) AND dataset = %s"""


def choose(
    connection: Connection, dataset: str, first: int, last: int, size: int, chance: random.Random
) -> list[Batch]:
    """At most `size` batches of the dataset with first <= id <= last, in order; each is as likely as any other.

    Ids are drawn and looked up by the ledger's primary key until enough of them are batches of the dataset. Raises
    StoreDown.
    """
    ids = range(max(first, 1), last + 1)
    found: dict[int, Batch] = {}
    for _ in range(_ATTEMPTS):
        is_all = len(ids) <= _IDS_AT_ONCE
        drawn = list(ids) if is_all else chance.sample(ids, _IDS_AT_ONCE)
        chance.shuffle(drawn)
        with translated():
            rows = connection.execute(_BY_IDS, (drawn, dataset)).fetchall()
        batches = {row[0]: Batch(*row) for row in rows}
        found |= {batch_id: batches[batch_id] for batch_id in drawn if batch_id in batches}
        if is_all or len(found) >= size:
            break
    return sorted(list(found.values())[:size], key=lambda batch: batch.batch_id)
