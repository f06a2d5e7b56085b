"""Deletes dead letters and Spark's rejects of the batches below the floor, once retention has raised the floor."""

from collections.abc import Iterator

from services.core.dataset import Dataset
from services.lake.maintenance import TableMaintenance
from services.ledger import dead_letter_index, floors
from services.maintenance.settings import MaintainSettings
from services.postgres.connection import connect
from services.streams import dead_letters, kafka, kafka_client
from services.streams.topics import ensure_topics


class DeadLetterRetention:
    """Deletes the old dead letters of one dataset."""

    def __init__(self, settings: MaintainSettings, dataset: Dataset, lake: TableMaintenance) -> None:
        self._settings = settings
        self._dataset = dataset
        self._lake = lake
        self._floor = 0  # the dead letters of all batches below it are deleted

    def delete_old(self) -> Iterator[str]:
        """Yield a sentence for everything that was deleted. Blocks.

        Does nothing unless the floor has risen since the last call. Raises StoreDown.
        """
        if self._settings.retention_days is None:
            return
        with connect(self._settings.postgres_url.get_secret_value()) as connection:
            floor = floors.floor(connection, self._dataset.name)
            if floor == self._floor:
                return
            if rejects := self._lake.drop_rejects(floor):
                yield f"{rejects} rejects of dropped batches deleted"
            ensure_topics(self._settings.kafka_url, {dead_letters.TOPIC: 1}, self._settings.kafka_replication)
            dead_letter_index.update(
                connection, kafka.KafkaPartitionReader(self._settings.kafka_url, dead_letters.TOPIC)
            )
            if deleted := dead_letter_index.forget(connection, self._dataset.name, floor):
                yield f"{deleted} dead letters of dropped batches deleted"
            if needed := dead_letter_index.needed(connection):
                place = (dead_letters.TOPIC, needed.topic_id, dead_letters.PARTITION, needed.offset)
                kafka_client.delete_before(self._settings.kafka_url, *place)
        self._floor = floor
