"""ClickHouse, over HTTP by clickhouse-connect.

A time column of the description is two columns here: `<name>` takes the integer microseconds of the line and is not
stored (EPHEMERAL), `<name>_utc` is what is stored and asked for.
"""

from services.runtime.settings import ClickHouseSettings
from services.stores.clickhouse.client import NAME
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.tables import create_table, drop_days
from services.stores.clickhouse.writer import ClickHouseWriter

__all__ = ["NAME", "ClickHouseReader", "ClickHouseWriter", "create_table", "drop_days", "open_reader", "open_writer"]


def open_reader() -> ClickHouseReader:
    return ClickHouseReader(ClickHouseSettings().clickhouse_url.get_secret_value())


def open_writer() -> ClickHouseWriter:
    return ClickHouseWriter(ClickHouseSettings().clickhouse_url.get_secret_value())
