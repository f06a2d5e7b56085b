"""Batches of messages that librdkafka cannot decompress, for example because they have more than 100 MB."""

from collections.abc import Mapping


class FailedDecompression:
    """Decides which offset of a partition is skipped after librdkafka has failed to decompress a batch of messages.

    A batch that fails once may have been damaged on its way, and the client fetches it again. After a batch has failed
    twice in a row, each further failure skips one offset: nobody knows how many messages the batch has.
    """

    def __init__(self) -> None:
        self._failed: dict[int, int] = {}  # partition -> first offset of the batch that has failed last

    def skipped(self, partition: int, batch: int, read_up_to: Mapping[int, int]) -> int | None:
        """Return the offset to skip; None if the batch, which begins at offset `batch`, has to be fetched again."""
        if partition not in read_up_to:
            return None  # the partition is no longer assigned
        if self._failed.get(partition) != batch:
            self._failed[partition] = batch
            return None
        return max(batch, read_up_to[partition])
