"""What a kept answer counts in: the same batch number in another ledger, table or span of days has another answer."""

import time
from collections.abc import Callable

from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.ports import StoreReader
from services.ledger import reading
from services.ledger.identity import ledger_id
from services.postgres.pool import Pool

_SECONDS = 1.0


class Scopes:
    """Read at most once a second for each store and dataset. Thread-safe.

    So for a second after the ledger was wiped, a table rebuilt or a day dropped, an answer may still be the old one.
    While the ledger or the store is unreachable, the scope last read is used, as the last known watermark is.
    """

    def __init__(self, ledger: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[str, float]] = {}

    def of(self, reader: StoreReader, dataset: Dataset) -> str | None:
        """None when it is not known: then no answer may be kept."""
        scope, until = self._known.get((reader.name, dataset.name), (None, 0.0))
        now = self._clock()
        if scope is not None and now < until:
            return scope
        try:
            scope = self._read(reader, dataset)
        except StoreDown:
            if scope is None:
                return None
        self._known[reader.name, dataset.name] = (scope, now + _SECONDS)
        return scope

    def _read(self, reader: StoreReader, dataset: Dataset) -> str:
        table_id = _table_id(reader, dataset)  # before a connection is borrowed: the store may hang
        with self._ledger.connection() as connection:
            floor = reading.floor(connection, dataset.name)
            return repr((ledger_id(connection), table_id, floor))


def _table_id(reader: StoreReader, dataset: Dataset) -> str:
    """'' for the store whose tables are beside the ledger."""
    match reader.progress:
        case "own":
            return reader.position(dataset).table_id
        case "sink":
            return reader.table_id(dataset)
        case "ledger":
            return ""
