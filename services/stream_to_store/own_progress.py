"""The progress of a store whose own transactions keep its position, so that no range is marked in the ledger."""

from collections.abc import Iterable, Mapping, Sequence

from services.core.dataset import Dataset
from services.core.ledger import OffsetRange, SinkPosition
from services.core.ports import OwnProgressWriter


class OwnProgress:
    """Implements Progress. The writer commits the position together with the rows, so most methods do nothing."""

    def __init__(self, writer: OwnProgressWriter, dataset: Dataset, topic_id: str) -> None:
        self._writer = writer
        self._dataset = dataset
        self._topic_id = topic_id

    def load(self, partitions: Sequence[int]) -> Iterable[SinkPosition]:
        """Return the positions; a partition that was never read starts at 0. Raises StoreDown, NeedsOperator."""
        positions = self._writer.positions(self._dataset, self._topic_id)
        return [SinkPosition(partition, positions.get(partition, 0)) for partition in partitions]

    def check_topic(self, topic_id: str) -> None:
        """Raise NeedsOperator, as the writer does, if `topic_id` is not the topic that the positions count in."""
        if topic_id != self._topic_id:
            self._writer.positions(self._dataset, topic_id)

    def check_table(self) -> None:
        """The position is in the table itself."""

    def mark_pending(self, pending: Mapping[int, OffsetRange]) -> bool:
        return False

    def mark_loaded(self, pending: Mapping[int, OffsetRange]) -> None:
        pass

    def close(self) -> None:
        pass
