"""Settles a slot of which nobody can tell from the topic alone whether its batches were published.

The stores are asked, too: a batch of which a store holds rows was published. A batch that neither the topic nor any
store has was not, and the next owner of the slot publishes it again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from services.core.dataset import Dataset
from services.core.errors import NeedsOperator
from services.core.ledger import Batch
from services.core.ports import PartitionReader, StoreReader, TransactionalProducer
from services.ingest_api.topic_log import TopicLog
from services.ledger import batches as ledger
from services.ledger.slots import Lease
from services.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class Resolved:
    """What became of a slot's batches of one dataset; `lacking`: store -> how many of them it has not got whole."""

    dataset: str
    in_topic: int
    in_stores_only: int
    to_publish: int
    lacking: Mapping[str, int]


def resolve(
    connection: Connection,
    lease: Lease,
    datasets: Mapping[str, Dataset],
    sinks: Sequence[StoreReader],
    open_producer: Callable[[int], TransactionalProducer],
    open_reader: Callable[[str], PartitionReader],
) -> Iterator[Resolved]:
    """Mark the batches that were published, and leave the others for the next owner of the slot.

    Raises StoreDown, also when one of `sinks` cannot be asked; Fenced when the slot was leased by another process; and
    NeedsOperator when the slot holds a dataset that this process does not know.
    """
    with closing(open_producer(lease.slot)):  # this ends a transaction that is still open
        doubt = ledger.all_unpublished(connection, lease.slot)
        for name in sorted({batch.dataset for batch in doubt}):
            if name not in datasets:
                raise NeedsOperator(f"dataset {name!r} is not known here: run this command of a newer release")
            own = {batch.batch_id: batch for batch in doubt if batch.dataset == name}
            log = TopicLog(connection, datasets[name], open_reader(datasets[name].topic))
            with closing(log):
                yield _settle(connection, lease, log, own, sinks)


def _settle(
    connection: Connection, lease: Lease, log: TopicLog, doubt: Mapping[int, Batch], sinks: Sequence[StoreReader]
) -> Resolved:
    positions = ledger.slot_positions(connection, lease.slot, log.dataset.name).get(log.topic.topic_id, {})
    bounds = log.bounds()
    found = log.holds(doubt, {p: max(first, min(positions.get(p, 0), end)) for p, (first, end) in bounds.items()})
    # Of a batch that the topic holds in part, retention has deleted the other messages.
    unclear = [batch_id for batch_id, batch in doubt.items() if found.get(batch_id, ((), 0))[1] < batch.rows]
    held = {sink.name: _held(sink, log.dataset, [doubt[batch_id] for batch_id in unclear]) for sink in sinks}
    in_stores_only = [b for b in unclear if b not in found and any(rows.get(b) for rows in held.values())]
    parts = {batch_id: parts for batch_id, (parts, _) in found.items()} | dict.fromkeys(in_stores_only, ())
    published = [replace(doubt[batch_id], parts=parts[batch_id]) for batch_id in sorted(parts)]
    ledger.mark_published(connection, lease, published, {log.dataset.name: log.topic})
    ledger.advance_slot(
        connection, lease, log.dataset.name, log.topic, {partition: end for partition, (_, end) in bounds.items()}
    )
    lacking = {
        name: sum(rows.get(batch_id, 0) < doubt[batch_id].rows for batch_id in unclear if batch_id in parts)
        for name, rows in held.items()
    }
    return Resolved(
        log.dataset.name,
        len(found),
        len(in_stores_only),
        len(doubt) - len(published),
        {name: count for name, count in lacking.items() if count},
    )


def _held(sink: StoreReader, dataset: Dataset, batches: Sequence[Batch]) -> dict[int, int]:
    """Batch id -> how many of its rows the store has."""
    return {batch_id: distinct for batch_id, _, distinct in sink.counts_of(dataset, batches)}
