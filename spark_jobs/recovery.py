"""What an operator can do when a table and its checkpoint do not belong together.

The checkpoint goes first: should this end half-way, the next start is refused again, and this can be repeated.
"""

from services.core.errors import NeedsOperator
from services.stores.lake import Position
from spark_jobs.session import open_session
from spark_jobs.settings import StreamToLakeSettings
from spark_jobs.stream import LakeStream


def resume(settings: StreamToLakeSettings, stream: LakeStream) -> Position:
    """Give up the checkpoint; the next start goes on where the table stands, which is returned."""
    stream.tables.prepare()
    position = stream.tables.rows.position()
    if position is None:
        raise NeedsOperator(
            f"{stream.dataset.name}: no commit of its table says where it stands: only --rebuild is left"
        )
    if position.query:
        spark = open_session("stream-to-lake --resume", settings)
        try:
            stream.write_last_rejects(spark, position)
        finally:
            spark.stop()
    stream.checkpoint.delete()
    released = Position(position.topic_id, position.offsets)
    stream.tables.release(released)
    return released


def rebuild(stream: LakeStream) -> None:
    """Delete the checkpoint and all rows; the next start reads the topic from its beginning."""
    stream.tables.prepare()
    stream.checkpoint.delete()
    stream.tables.empty()
