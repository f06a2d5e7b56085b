"""Compares a few batches, chosen at random, with what one store holds of them; nothing else is read."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from services.core.dataset import Dataset
from services.core.ids import batch_of
from services.core.ledger import Batch
from services.core.ports import StoreReader
from services.core.rows import RowCodec, checksum
from services.verify.dead_letters import Aside
from services.verify.reconcile import Advance, Result, compare, encoded, judge

_AT_ONCE = 50  # batches of one query: bounds the ids held


def reconcile(
    reader: StoreReader, dataset: Dataset, chosen: Sequence[Batch], aside: Mapping[int, Aside], advance: Advance
) -> Result:
    """Rows and checksums of the chosen batches. `aside`: batch -> dead-lettered rows. Raises StoreDown."""
    result = Result(dataset.name, reader.name)
    codec = RowCodec(dataset)
    for start in range(0, len(chosen), _AT_ONCE):
        batches = chosen[start : start + _AT_ONCE]
        rows: Counter[int] = Counter()
        sums: Counter[int] = Counter()
        ids: defaultdict[int, set[int]] = defaultdict(set)
        for row, line in encoded(codec, reader.rows_of(dataset, batches)):
            batch_id = batch_of(row[0])
            rows[batch_id] += 1
            sums[batch_id] += checksum([line])
            ids[batch_id].add(row[0])
        for batch in batches:
            found, dead = ids[batch.batch_id], aside.get(batch.batch_id)
            if judge(batch, rows[batch.batch_id], len(found), (found, dead) if dead else None, result):
                compare(batch, sums[batch.batch_id], result)
        advance(sum(batch.rows for batch in batches))
    return result
