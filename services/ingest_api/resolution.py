"""Settles a slot of which the topic alone does not tell whether its batches were published.

The stores are asked, too: a batch of which a store holds rows was published. A batch that neither the topic nor any
store has is published again by the next owner of the slot, whether it was published before or not: no store has loaded
it. So that no store loads it after the look, nothing may fill the stores meanwhile.

A batch that was published and is not in the topic as a whole is marked by what is known of it. If it went to the topic
that is there now, each missing message gets the highest offset that it can have had: a store that has come beyond that
offset has passed the message. If the topic was created again, the batch is marked with the former topic.
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
from services.ledger.topics import Topic
from services.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class Sink:
    """A store that is filled from Kafka. `consumers`: dataset -> how many processes of stream-to-store fill it now."""

    reader: StoreReader
    writer: StoreWriter
    consumers: Callable[[str], int]


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
    sinks: Sequence[Sink],
    open_producer: Callable[[int], TransactionalProducer],
    open_reader: Callable[[str], PartitionReader],
) -> Iterator[Resolved]:
    """Mark the batches that were published, and leave the others for the next owner of the slot.

    Raises StoreDown, also when one of `sinks` cannot be asked; Conflict while one of them is being filled; Fenced when
    the slot was leased by another process; and NeedsOperator when the slot holds a dataset that this process does not
    know, or when the topic was cut.
    """
    with closing(open_producer(lease.slot)):  # this ends a transaction that is still open
        doubt = ledger_batches.in_doubt(connection, lease)
        for name in sorted({batch.dataset for batch in doubt}):
            if name not in datasets:
                raise NeedsOperator(f"dataset {name!r} is not known here: run this command of a newer release")
            own = {batch.batch_id: batch for batch in doubt if batch.dataset == name}
            log = TopicLog(connection, datasets[name], open_reader(datasets[name].topic))
            with closing(log):
                _end_writes(sinks, datasets[name])
                yield _settle(connection, lease, log, own, [sink.reader for sink in sinks])


def _end_writes(sinks: Sequence[Sink], dataset: Dataset) -> None:
    """Make sure that no store gets rows of the dataset any more. Raises StoreDown, Conflict, NeedsOperator."""
    for sink in sinks:
        store = sink.reader.name
        if sink.consumers(dataset.name):
            raise Conflict(
                f"{store} is being filled with {dataset.name}: stop stream-to-store --store {store} (a killed one"
                " leaves its group after some seconds), run this command again, and start it once the slot is free"
            )
        sink.writer.end_writes(dataset)


def _settle(
    connection: Connection, lease: Lease, log: TopicLog, doubt: Mapping[int, Batch], sinks: Sequence[StoreReader]
) -> Resolved:
    dataset, positions = log.dataset, ledger_batches.slot_positions(connection, lease.slot, log.dataset.name)
    former = _former_topic(connection, log, positions)
    starts = positions.get(log.topic.topic_id, {})
    log.uncut_ends(connection)
    bounds = log.bounds()
    found = log.find_batches(doubt, {p: max(first, starts.get(p, 0)) for p, (first, _) in bounds.items()})
    whole = {batch_id for batch_id, (_, rows) in found.items() if rows == doubt[batch_id].rows}
    unclear = sorted(doubt.keys() - whole)
    held = {sink.name: _held(sink, dataset, [doubt[b] for b in unclear]) for sink in sinks}
    only_stored = [b for b in unclear if b not in found and any(rows.get(b) for rows in held.values())]
    dropped = [
        Part(partition, first - 1) for partition, (first, _) in bounds.items() if starts.get(partition, 0) < first
    ]
    parts = {b: (*own, *(() if b in whole else dropped)) for b, (own, _) in found.items()}
    if former is None:
        parts |= dict.fromkeys(only_stored, tuple(dropped))
    else:
        lost = [replace(doubt[b], parts=()) for b in only_stored]
        ledger_batches.mark_published(connection, lease, lost, {dataset.name: former})
    published = [replace(doubt[b], parts=parts[b]) for b in sorted(parts)]
    ledger_batches.mark_published(connection, lease, published, {dataset.name: log.topic})
    ledger_batches.advance_slot(connection, lease, dataset.name, log.topic, {p: end for p, (_, end) in bounds.items()})
    published_in_part = [doubt[b] for b in (*only_stored, *(found.keys() - whole))]
    return Resolved(
        dataset.name,
        len(found),
        len(only_stored),
        len(doubt) - len(found) - len(only_stored),
        _lacking(held, published_in_part),
    )


def _former_topic(connection: Connection, log: TopicLog, positions: Collection[str]) -> Topic | None:
    """Return the last topic that the slot was published to before the present one; None if there was no other."""
    others = [
        Topic(topics.number(connection, log.dataset.topic, topic_id), topic_id)
        for topic_id in positions
        if topic_id != log.topic.topic_id
    ]
    return max(others, key=lambda topic: topic.number, default=None)


def _lacking(held: Mapping[str, Mapping[int, int]], batches: Sequence[Batch]) -> dict[str, int]:
    """Store -> how many of `batches` it has not got whole, for the stores that lack any. `held`: see `_held`."""
    counts = {name: sum(rows.get(b.batch_id, 0) < b.rows for b in batches) for name, rows in held.items()}
    return {name: count for name, count in counts.items() if count}


def _held(sink: StoreReader, dataset: Dataset, batches: Sequence[Batch]) -> dict[int, int]:
    """Return batch id -> how many of its rows the store has."""
    return {batch_id: distinct for batch_id, _, distinct in sink.counts_of(dataset, batches)}
