"""Resolves a stuck slot: finds out which of its batches were published where the topic alone does not tell.

A batch of which a store holds rows was published. A batch that neither the topic nor any store has is published again
by the next owner of the slot: no store has loaded it, even if it was published before. So that no store loads such a
batch after it was asked, no process may fill the stores meanwhile.

A batch that was published and is not in the topic as a whole is marked all the same. If it was published to the present
topic, each missing message gets the highest offset that it can have had: a store that has come beyond that offset has
passed the message. If the topic was created again, the batch is marked with the former topic.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from services.acceptance.topic_log import TopicLog
from services.core.dataset import Dataset
from services.core.errors import Conflict, NeedsOperator
from services.core.ledger import Batch, Part
from services.core.ports import PartitionReader, StoreReader, StoreWriter, TransactionalProducer
from services.ledger import batches as ledger_batches
from services.ledger import topics
from services.ledger.slots import Lease
from services.ledger.topics import NumberedTopic
from services.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class FilledStore:
    """A store that is filled from Kafka. `consumers`: dataset -> how many processes of stream-to-store fill it now."""

    reader: StoreReader
    writer: StoreWriter
    consumers: Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The number of a slot's batches of one dataset by outcome. `lacking`: store -> how many it does not hold whole."""

    dataset: str
    in_topic: int
    in_stores_only: int
    to_publish: int
    lacking: Mapping[str, int]


def resolve(
    connection: Connection,
    lease: Lease,
    datasets: Mapping[str, Dataset],
    filled_stores: Sequence[FilledStore],
    open_producer: Callable[[int], TransactionalProducer],
    open_reader: Callable[[str], PartitionReader],
) -> Iterator[Resolved]:
    """Mark the batches that were published, and leave the others for the next owner of the slot.

    Raises StoreDown, also when one of the stores cannot be asked; Conflict while one of them is being filled; Fenced
    when the slot was leased by another process; and NeedsOperator when the slot holds a dataset that this process does
    not know, or when the topic was cut.
    """
    with closing(open_producer(lease.slot)):  # this ends a transaction that is still open
        in_doubt = ledger_batches.in_doubt(connection, lease)
        for name in sorted({batch.dataset for batch in in_doubt}):
            if name not in datasets:
                raise NeedsOperator(f"dataset {name!r} is not known here: run this command of a newer release")
            own = {batch.batch_id: batch for batch in in_doubt if batch.dataset == name}
            topic_log = TopicLog(connection, datasets[name], open_reader(datasets[name].topic))
            with closing(topic_log):
                _end_writes(filled_stores, datasets[name])
                yield _resolve_dataset(connection, lease, topic_log, own, [store.reader for store in filled_stores])


def _end_writes(filled_stores: Sequence[FilledStore], dataset: Dataset) -> None:
    """Make sure that no store gets rows of the dataset any more. Raises StoreDown, Conflict, NeedsOperator."""
    for filled_store in filled_stores:
        store = filled_store.reader.name
        if filled_store.consumers(dataset.name):
            raise Conflict(
                f"{store} is being filled with {dataset.name}: stop stream-to-store --store {store} (a killed one"
                " leaves its group after some seconds), run this command again, and start it once the slot is free"
            )
        filled_store.writer.end_writes(dataset)


def _resolve_dataset(
    connection: Connection,
    lease: Lease,
    topic_log: TopicLog,
    in_doubt: Mapping[int, Batch],
    stores: Sequence[StoreReader],
) -> Resolved:
    """Search the topic and the stores for the batches of one dataset that are in doubt, and mark those found."""
    dataset = topic_log.dataset
    positions = ledger_batches.slot_positions(connection, lease.slot, dataset.name)
    former = _former_topic(connection, topic_log, positions)
    searched = positions.get(topic_log.topic.topic_id, {})
    topic_log.uncut_ends(connection)
    bounds = topic_log.bounds()
    starts = {partition: max(first, searched.get(partition, 0)) for partition, (first, _) in bounds.items()}
    found = topic_log.find_batches(in_doubt, starts)
    whole = {batch_id for batch_id, batch in found.items() if batch.rows == in_doubt[batch_id].rows}
    not_whole = [in_doubt[batch_id] for batch_id in sorted(in_doubt.keys() - whole)]
    stored = {store.name: _stored_rows(store, dataset, not_whole) for store in stores}
    stored_only = [
        batch
        for batch in not_whole
        if batch.batch_id not in found and any(rows.get(batch.batch_id) for rows in stored.values())
    ]
    deleted_parts = tuple(
        Part(partition, first - 1)
        for partition, (first, _) in bounds.items()
        if searched.get(partition, 0) < first  # retention has deleted messages that nothing has searched
    )
    published = [
        replace(in_doubt[batch_id], parts=(*batch.parts, *(() if batch_id in whole else deleted_parts)))
        for batch_id, batch in found.items()
    ]
    if former is None:
        published += [replace(batch, parts=deleted_parts) for batch in stored_only]
    else:
        lost = [replace(batch, parts=()) for batch in stored_only]
        ledger_batches.mark_published(connection, lease, lost, {dataset.name: former})
    published.sort(key=lambda batch: batch.batch_id)
    ledger_batches.mark_published(connection, lease, published, {dataset.name: topic_log.topic})
    ends = {partition: end for partition, (_, end) in bounds.items()}
    ledger_batches.advance_slot(connection, lease, dataset.name, topic_log.topic, ends)
    published_not_whole = [batch for batch in not_whole if batch in stored_only or batch.batch_id in found]
    return Resolved(
        dataset.name,
        len(found),
        len(stored_only),
        len(in_doubt) - len(found) - len(stored_only),
        _lacking(stored, published_not_whole),
    )


def _former_topic(connection: Connection, topic_log: TopicLog, topic_ids: Collection[str]) -> NumberedTopic | None:
    """Return the last of the topics before the present one; None if there is no other.

    `topic_ids`: those that the slot was published to.
    """
    others = [
        NumberedTopic(topics.number(connection, topic_log.dataset.topic, topic_id), topic_id)
        for topic_id in topic_ids
        if topic_id != topic_log.topic.topic_id
    ]
    return max(others, key=lambda topic: topic.number, default=None)


def _lacking(stored: Mapping[str, Mapping[int, int]], batches: Sequence[Batch]) -> dict[str, int]:
    """Return store -> how many of `batches` it does not hold whole, for the stores that lack rows of any.

    `stored`: store -> the result of `_stored_rows`.
    """
    counts = {name: sum(rows.get(b.batch_id, 0) < b.rows for b in batches) for name, rows in stored.items()}
    return {name: count for name, count in counts.items() if count}


def _stored_rows(store: StoreReader, dataset: Dataset, batches: Sequence[Batch]) -> dict[int, int]:
    """Return batch id -> how many of its rows the store has."""
    return {batch_id: distinct for batch_id, _, distinct in store.counts_of(dataset, batches)}
