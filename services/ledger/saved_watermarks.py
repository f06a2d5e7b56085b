"""Watermarks kept in the ledger, so that no process begins at the first batch again (table `watermarks`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from psycopg.types.json import Jsonb

from services.core.ledger import StorePosition
from services.postgres.connection import Connection, translated


@dataclass(frozen=True, slots=True)
class SavedWatermark:
    """All batches up to `batch_id` are loaded, if the store's position is still `position` or beyond.

    `epoch` is raised when the watermark is lowered. A process that knows only a lower epoch cannot save a watermark.
    """

    position: StorePosition = field(default_factory=lambda: StorePosition("", "", {}))
    batch_id: int = 0
    epoch: int = 0


def read(connection: Connection, store: str = "", dataset: str = "") -> SavedWatermark:
    """Return the watermark of a store and dataset; without these two the id up to which all batch ids are settled."""
    query = "SELECT table_id, topic_id, offsets, batch_id, epoch FROM watermarks WHERE store = %s AND dataset = %s"
    with translated():
        row = connection.execute(query, (store, dataset)).fetchone()
    if row is None:
        return SavedWatermark()
    table_id, topic_id, offsets, batch_id, epoch = row
    return SavedWatermark(StorePosition(table_id, topic_id, _offsets(offsets)), batch_id, epoch)


def raise_to(connection: Connection, saved: SavedWatermark, store: str = "", dataset: str = "") -> None:
    """Save a higher watermark. Nothing changes if another process has saved a higher one, or has lowered it."""
    query = """INSERT INTO watermarks AS w (store, dataset, table_id, topic_id, offsets, batch_id, epoch)
               VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (store, dataset) DO UPDATE
               SET table_id = excluded.table_id, topic_id = excluded.topic_id, offsets = excluded.offsets,
                   batch_id = excluded.batch_id, saved_at = now()
               WHERE w.epoch = excluded.epoch AND w.batch_id < excluded.batch_id"""
    with translated():
        connection.execute(query, (store, dataset, *_values(saved.position), saved.batch_id, saved.epoch))


def replace(connection: Connection, store: str, dataset: str, position: StorePosition, batch_id: int) -> None:
    """Set a watermark to `batch_id`, also below its old value, for a store whose position is now `position`."""
    query = """INSERT INTO watermarks AS w (store, dataset, table_id, topic_id, offsets, batch_id, epoch)
               VALUES (%s, %s, %s, %s, %s, %s, 1) ON CONFLICT (store, dataset) DO UPDATE
               SET table_id = excluded.table_id, topic_id = excluded.topic_id, offsets = excluded.offsets,
                   batch_id = excluded.batch_id, epoch = w.epoch + 1, saved_at = now()"""
    with translated():
        connection.execute(query, (store, dataset, *_values(position), batch_id))


def _values(position: StorePosition) -> tuple[str, str, Jsonb]:
    return position.table_id, position.topic_id, Jsonb({str(p): offset for p, offset in position.offsets.items()})


def _offsets(stored: Mapping[str, int]) -> dict[int, int]:
    return {int(partition): offset for partition, offset in stored.items()}
