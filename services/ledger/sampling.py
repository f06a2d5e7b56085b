"""Choosing batches of the ledger at random, at a cost that does not depend on how many there are."""

import random
from collections.abc import Iterable
from typing import LiteralString

from services.core.ledger import Batch
from services.postgres.connection import Connection, translated

_IDS_AT_ONCE = 2_000
_ATTEMPTS = 50  # of so many ids: a dataset that has fewer than one id in a thousand may get a smaller sample

_BATCHES: LiteralString = "SELECT batch_id, slot, dataset, rows, checksum, created_at FROM batches "
_FEW = _BATCHES + "WHERE dataset = %s AND batch_id BETWEEN %s AND %s ORDER BY dataset, batch_id LIMIT %s"
_BY_IDS = _BATCHES + "WHERE batch_id = ANY(%s) AND dataset = %s"


class _Ids:
    """The ids first..last in order, without those of `leaps` (after < id <= until; in order, apart from each other)."""

    def __init__(self, first: int, last: int, leaps: Iterable[tuple[int, int]]) -> None:
        self._ranges: list[range] = []
        for after, until in leaps:
            self._ranges.append(range(first, min(after, last) + 1))
            first = max(first, until + 1)
        self._ranges.append(range(first, last + 1))

    def __len__(self) -> int:
        return sum(map(len, self._ranges))

    def __getitem__(self, place: int) -> int:
        for ids in self._ranges:
            if place < len(ids):
                return ids[place]
            place -= len(ids)
        raise IndexError(place)


def choose(
    connection: Connection, dataset: str, first: int, last: int, size: int, chance: random.Random
) -> list[Batch]:
    """Return at most `size` batches of the dataset with first <= id <= last, in order; each is as likely as any other.

    A dataset that has few batches has them listed by the index on (dataset, id). Otherwise ids are drawn, and looked up
    by the ledger's primary key, until enough of them are batches of the dataset. Raises StoreDown.
    """
    with translated():
        few = connection.execute(_FEW, (dataset, first, last, _IDS_AT_ONCE + 1)).fetchall()
    if len(few) <= _IDS_AT_ONCE:
        return [Batch(*row) for row in sorted(chance.sample(few, min(size, len(few))))]
    with translated():
        leaps = connection.execute("SELECT after, until FROM id_leaps ORDER BY after").fetchall()
    ids = _Ids(max(first, 1), last, leaps)
    found: dict[int, Batch] = {}
    for _ in range(_ATTEMPTS):
        is_all = len(ids) <= _IDS_AT_ONCE
        places = range(len(ids)) if is_all else chance.sample(range(len(ids)), _IDS_AT_ONCE)
        drawn = [ids[place] for place in places]
        chance.shuffle(drawn)
        with translated():
            rows = connection.execute(_BY_IDS, (drawn, dataset)).fetchall()
        batches = {row[0]: Batch(*row) for row in rows}
        found |= {batch_id: batches[batch_id] for batch_id in drawn if batch_id in batches}
        if is_all or len(found) >= size:
            break
    return sorted(list(found.values())[:size], key=lambda batch: batch.batch_id)
