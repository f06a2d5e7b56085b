"""The scope of a cached result: the ledger, the table and the floor for which it is valid.

The same batch number in another ledger, in another table or above another floor has another result.
"""

import time
from collections.abc import Callable

from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.ports import StoreReader
from services.ledger import floors
from services.ledger.identity import ledger_id
from services.postgres.pool import Pool

_SECONDS = 1.0


class Scopes:
    """Reads each scope at most once a second for each store and dataset. Thread-safe.

    So for one second after the ledger was wiped, a table was rebuilt or a day was dropped, a result may still be the
    former one. While the ledger or the store is unreachable, the scope that was read last is used, as the last known
    watermark is.
    """

    def __init__(self, ledger: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[str, float]] = {}

    def of(self, reader: StoreReader, dataset: Dataset) -> str | None:
        """Return the scope, or None when it is unknown: then no result may be cached. Blocks."""
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
        table_id = _table_id(reader, dataset)  # read first: a store that hangs must not occupy a connection
        with self._ledger.connection() as connection:
            floor = floors.floor(connection, dataset.name)
            return repr((ledger_id(connection), table_id, floor))


def _table_id(reader: StoreReader, dataset: Dataset) -> str:
    """Return the identity of the store's table, '' for the store whose tables belong to the ledger's database."""
    match reader.progress:
        case "own":
            return reader.position(dataset).table_id
        case "sink":
            return reader.table_id(dataset)
        case "ledger":
            return ""
