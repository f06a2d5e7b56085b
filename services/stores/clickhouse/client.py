"""The connection over HTTP, and the translation of ClickHouse's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, Error
from urllib3.exceptions import HTTPError

from services.core.errors import Backpressure, LogpipeError, StoreDown
from services.stores.clickhouse import STORE

_CONNECT_TIMEOUT = 5  # seconds

# Codes of errors.
TIMEOUT = 159
TOO_LARGE = 396
_OVERLOADED = {
    TIMEOUT,
    202,
    241,
    252,
    439,
}  # too slow, too many queries, memory, too many ClickHouse parts, no free thread


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except (ClickHouseError, HTTPError, OSError) as error:
        raise _translate(error) from error


def _translate(error: Exception) -> LogpipeError:
    code = error.code if isinstance(error, Error) else None
    detail = str(error).strip()[:500]
    if code in _OVERLOADED:
        return Backpressure(f"{STORE.name}: {detail}", retry_after=1.0)
    return StoreDown(STORE.name, detail)


def connect(url: str, timeout: int) -> Client:
    with translated():
        return clickhouse_connect.get_client(
            dsn=url,
            interface=urlsplit(url).scheme,  # without it, the driver decides by the port, and would not encrypt
            connect_timeout=_CONNECT_TIMEOUT,
            send_receive_timeout=timeout,
            autogenerate_session_id=False,  # a session would run only one query at a time
            dedicated_pool=True,
        )
