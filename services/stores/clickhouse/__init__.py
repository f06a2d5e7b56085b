"""ClickHouse, over HTTP by clickhouse-connect.

A time column of the description is two columns here: `<name>` takes the integer microseconds of the line and is not
stored (EPHEMERAL), and `<name>_utc` is stored and queried.
"""

from collections.abc import Collection

from services.core.dataset import Dataset
from services.core.ports import StoreReader, StoreWriter
from services.core.stores import Store
from services.runtime.settings import ClickHouseSettings


def _open_reader() -> StoreReader:
    from services.stores.clickhouse.reader import ClickHouseReader

    return ClickHouseReader(ClickHouseSettings().clickhouse_url.get_secret_value())


def _open_writer() -> StoreWriter:
    from services.stores.clickhouse.writer import ClickHouseWriter

    return ClickHouseWriter(ClickHouseSettings().clickhouse_url.get_secret_value())


def _drop_days(dataset: Dataset, before: int, keep: Collection[int]) -> int:
    from services.stores.clickhouse.tables import drop_days

    return drop_days(dataset, before, keep)


STORE = Store(
    name="clickhouse",
    route="clickhouse",
    reply_name="clickhouse",
    label="ClickHouse",
    open_reader=_open_reader,
    open_writer=_open_writer,
    drop_days=_drop_days,
)
