"""Makes the publishers of a process's slots, from its settings."""

from collections.abc import Callable, Sequence
from functools import partial

from services.acceptance.publisher import MessageCache, SlotKafka, SlotPublisher, open_slot_producer
from services.acceptance.settings import AcceptanceSettings
from services.core.dataset import Dataset
from services.ledger.slots import Lease
from services.stores.postgres import PostgresReader
from services.streams import kafka


def publisher_opener(
    settings: AcceptanceSettings, known: Sequence[Dataset], message_cache: MessageCache, rows: PostgresReader
) -> Callable[[Lease], SlotPublisher]:
    """Return the function that opens the publisher of a slot.

    `known`: every dataset, because a slot may be adopted from another process.

    `rows` reads back the rows of batches whose messages are not in the cache.
    """
    by_name = {dataset.name: dataset for dataset in known}
    slot_kafka = SlotKafka(
        partial(open_slot_producer, settings.kafka_url),
        partial(kafka.KafkaPartitionReader, settings.kafka_url),
        settings.kafka_partitions,
    )

    def open_publisher(lease: Lease) -> SlotPublisher:
        return SlotPublisher(lease, by_name, slot_kafka, message_cache, rows, settings.publisher_rows)

    return open_publisher


def topic_names(known: Sequence[Dataset]) -> list[str]:
    """Return every topic that batches are published to."""
    return [dataset.topic for dataset in known] + [dataset.alert.topic for dataset in known if dataset.alert]
