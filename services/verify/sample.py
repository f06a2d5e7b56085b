"""Compares a few batches, chosen at random, with their rows in one store. It reads no other rows."""

from collections import defaultdict
from collections.abc import Sequence

from services.core.dataset import Dataset
from services.core.ids import MAX_BATCH
from services.core.ledger import Batch
from services.core.ports import StoreReader
from services.core.read_back import ReadBack
from services.core.rows import RowCodec
from services.verify.dead_letters import LookUp
from services.verify.reconcile import Advance, Result, add_counts, compare

_AT_ONCE = 50  # batches of one query: bounds the ids held


def reconcile(
    reader: StoreReader,
    dataset: Dataset,
    chosen: Sequence[Batch],
    look_up: LookUp,
    advance: Advance,
    watermark: int = MAX_BATCH,
) -> Result:
    """Compare the rows and the checksums of the chosen batches. `look_up` finds dead-lettered rows.

    It is called after the rows were read, because the store may dead-letter rows meanwhile. `watermark`: of the store,
    before this call. Blocks. Raises StoreDown.
    """
    result = Result(dataset.name, reader.name, watermark)
    codec = RowCodec(dataset)
    for start in range(0, len(chosen), _AT_ONCE):
        batches = chosen[start : start + _AT_ONCE]
        read_back = ReadBack(codec)
        ids: defaultdict[int, set[int]] = defaultdict(set)
        for run in read_back.runs(reader.rows_of(dataset, batches)):
            ids[run.batch_id].update(row[0] for row in run.rows)
        dead_lettered = look_up([batch.batch_id for batch in batches])
        for batch in batches:
            found, dead = ids[batch.batch_id], dead_lettered.get(batch.batch_id)
            if add_counts(batch, read_back.rows(batch.batch_id), len(found), (found, dead) if dead else None, result):
                compare(batch, read_back, result)
        advance(sum(batch.rows for batch in batches))
    return result
