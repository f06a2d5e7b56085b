"""The commands for a table and a checkpoint that do not belong together. No process may write either meanwhile.

Each command deletes the checkpoint first. If the command ends half-way, the next start is refused again, and the
command can be repeated.
"""

from collections.abc import Mapping

from services.core.errors import NeedsOperator
from services.lake import NAME
from services.lake.table import CLAIMED, EMBEDDED, LakePosition
from spark_jobs.stream import LakeStream


def resume(stream: LakeStream) -> LakePosition:
    """Delete the checkpoint. The next start continues at the position of the table, which is returned.

    In partitions that no longer have the next messages, the position is moved to the beginning of the topic.
    """
    stream.tables.prepare()
    handle, position = stream.tables.rows.current_version()
    if position is None and handle.file_uris():
        raise NeedsOperator(f"{stream.dataset.name}: no commit of its table has a position: use --rebuild")
    former = _queries(stream, position)
    released = _released(position or LakePosition.first(), stream.topic.topic_id(), stream.topic.bounds())
    stream.checkpoint.delete()
    stream.tables.release(handle, released, former)
    return released


def rebuild(stream: LakeStream, *, give_up_rows: bool) -> None:
    """Delete the checkpoint and all rows; the next start reads the topic from its beginning.

    Raises NeedsOperator if there are rows, unless `give_up_rows`: only a replay brings back a row that the topic lacks.
    """
    stream.tables.prepare()
    if not give_up_rows and not stream.tables.is_empty():
        raise NeedsOperator(
            f"{stream.dataset.name}: its table in the lake would lack rows that {stream.dataset.topic} no longer has,"
            f" until `logpipe replay --store {NAME}` has written them: to delete all rows of the table, add --yes"
        )
    former = _queries(stream, stream.tables.rows.position())
    firsts = {partition: first for partition, (first, _) in stream.topic.bounds().items()}
    begin = LakePosition.first(stream.topic.topic_id(), firsts)
    stream.checkpoint.delete()
    stream.tables.empty(begin, former)


def _queries(stream: LakeStream, position: LakePosition | None) -> set[str]:
    """Return the ids of the streaming queries that may still be writing a micro-batch to the table."""
    checkpoint = stream.checkpoint.load()
    found = {checkpoint.query if checkpoint else "", position.query if position else ""}
    return found - {"", CLAIMED, EMBEDDED}


def _released(position: LakePosition, topic_id: str, bounds: Mapping[int, tuple[int, int]]) -> LakePosition:
    if position.topic_id not in ("", topic_id):
        offsets = {partition: first for partition, (first, _) in bounds.items()}
        return LakePosition(topic_id, offsets, generation=position.generation)
    offsets = {p: min(max(position.offsets.get(p, 0), first), end) for p, (first, end) in bounds.items()}
    # Only the lost checkpoint knew whether the rejects of the table's last micro-batch were written.
    last = position.unfinished if position.has_no_micro_batch or position.query == EMBEDDED else position
    kept = last is not None and all(bounds[p][0] <= start for p, start in last.start.items() if p in bounds)
    return LakePosition(topic_id, offsets, unfinished=last if kept else None, generation=position.generation)
