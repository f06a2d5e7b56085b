"""What an operator can do when a table and its checkpoint do not belong together. Nothing may write them meanwhile.

The checkpoint goes first: should this end half-way, the next start is refused again, and this can be repeated.
"""

from collections.abc import Mapping

from services.core.errors import NeedsOperator
from services.lake.table import EMBEDDED, Position
from spark_jobs.stream import LakeStream


def resume(stream: LakeStream) -> Position:
    """Give up the checkpoint; the next start goes on where the table stands, which is returned.

    Where the topic no longer has what comes next, that is where it begins now.
    """
    stream.tables.prepare()
    handle, position = stream.tables.rows.standing()
    if position is None and handle.file_uris():
        raise NeedsOperator(f"{stream.dataset.name}: no commit of its table says where it stands: only --rebuild helps")
    released = _released(position or Position.first(), stream.topic.topic_id(), stream.topic.bounds())
    stream.checkpoint.delete()
    stream.tables.release(handle, released)
    return released


def rebuild(stream: LakeStream, *, give_up_rows: bool) -> None:
    """Delete the checkpoint and all rows; the next start reads the topic from its beginning.

    Raises NeedsOperator if the topic may lack rows that the table has, unless `give_up_rows`.
    """
    stream.tables.prepare()
    if not give_up_rows and _may_lose_rows(stream):
        raise NeedsOperator(
            f"{stream.dataset.name}: {stream.dataset.topic} does not go back to its first message, so rows of the table"
            " may be in no topic any more, and the lake would never get them back. To delete them all the same, add"
            " --yes"
        )
    stream.checkpoint.delete()
    stream.tables.empty()


def _may_lose_rows(stream: LakeStream) -> bool:
    if stream.tables.is_empty():
        return False
    position = stream.tables.rows.position()
    is_another = position is not None and position.topic_id not in ("", stream.topic.topic_id())
    return is_another or any(first > 0 for first, _ in stream.topic.bounds().values())


def _released(position: Position, topic_id: str, bounds: Mapping[int, tuple[int, int]]) -> Position:
    if position.topic_id not in ("", topic_id):
        offsets = {partition: first for partition, (first, _) in bounds.items()}
        return Position(topic_id, offsets, generation=position.generation)
    offsets = {p: min(max(position.offsets.get(p, 0), first), end) for p, (first, end) in bounds.items()}
    # Whether the table's last batch still had to write its rejects, only the lost checkpoint knew.
    last = position.unfinished if position.query in ("", EMBEDDED) else position
    kept = last is not None and all(bounds[p][0] <= start for p, start in last.start.items() if p in bounds)
    return Position(topic_id, offsets, unfinished=last if kept else None, generation=position.generation)
