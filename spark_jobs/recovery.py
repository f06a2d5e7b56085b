"""What an operator can do when a table and its checkpoint do not belong together. Nothing may write them meanwhile.

The checkpoint goes first: should this end half-way, the next start is refused again, and this can be repeated.
"""

from services.core.errors import NeedsOperator
from services.stores.lake import Position
from spark_jobs.stream import LakeStream


def resume(stream: LakeStream) -> Position:
    """Give up the checkpoint; the next start goes on where the table stands, which is returned."""
    stream.tables.prepare()
    position = stream.tables.rows.position()
    if position is None:
        raise NeedsOperator(f"{stream.dataset.name}: no commit of its table says where it stands: only --rebuild helps")
    stream.checkpoint.delete()
    if position.query:
        # Whether its last batch still wanted to write its rejects only the checkpoint knew.
        position = Position(position.topic_id, position.offsets, unfinished=position)
        stream.tables.release(position)
    return position


def rebuild(stream: LakeStream) -> None:
    """Delete the checkpoint and all rows; the next start reads the topic from its beginning."""
    stream.tables.prepare()
    stream.checkpoint.delete()
    stream.tables.empty()
