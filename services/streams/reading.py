"""Reads partitions of a topic up to their present ends."""

from collections.abc import Iterator, Mapping

from services.core.errors import StoreDown
from services.core.ports import Message, PartitionReader

PATIENCE = 90
"""Polls without progress, more seconds than a killed process's transaction stays open (60, then at most 10 until the
broker aborts it)."""

_POLL_SECONDS = 1.0


def read_to_end(
    topic: PartitionReader, name: str, starts: Mapping[int, int], patience: int = PATIENCE
) -> Iterator[tuple[list[Message], Mapping[int, int]]]:
    """Yield the committed messages of the topic `name`, from the offsets `starts` to the present ends.

    Offsets are by partition. Each result has the next messages and the offsets read up to. An open transaction hides
    the messages that follow its first one. Blocks. Raises StoreDown after `patience` polls (of 1 s) without progress.
    """
    ends = {partition: end for partition, (_, end) in topic.bounds().items() if partition in starts}
    read_up_to, idle = dict(starts), 0
    if not _is_behind(read_up_to, ends):
        return
    topic.assign(starts)
    while _is_behind(read_up_to, ends):
        messages = topic.poll(_POLL_SECONDS)
        before, read_up_to = read_up_to, {**read_up_to, **topic.read_up_to()}
        idle = 0 if messages or read_up_to != before else idle + 1
        if idle == patience:
            raise StoreDown("kafka", f"topic {name} could not be read to its end: no progress in {patience} s")
        yield messages, read_up_to


def _is_behind(read_up_to: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return any(read_up_to[partition] < end for partition, end in ends.items())
