"""Control arm of Spark: one batch from a JSON file on HDFS to Parquet on HDFS, by a Spark Connect server."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from services.bench.probes.controls import hdfs, rows
from services.bench.target.urls import Target
from services.core.dataset import CREATED_AT, ID, Column, Kind
from services.core.errors import StoreDown
from services.lake.table import within_limit

_ROWS = 200_000
_WARM_UP_ROWS = 1000  # the first batch of a server waits until its code is loaded
_SECONDS = 600.0
_TYPES: Mapping[Kind, str] = {"timestamp": "BIGINT", "number": "DOUBLE"}  # as in the lines; other kinds are STRING


def batch(target: Target) -> Mapping[str, float]:
    from services.lake.spark import connected  # only this arm needs pyspark, whose import takes seconds

    url = target.url("LOGPIPE_SPARK_CONNECT_URL")
    with connected(url) as session, hdfs.folder(target) as (client, path):
        sizes = {"warm-up": _WARM_UP_ROWS, "rows": _ROWS}
        for name, count in sizes.items():
            hdfs.write(client, f"{path}/{name}.json", rows.stored_lines(count))
        base = hdfs.lake(target).hdfs_url.rstrip("/") + path
        for name in sizes:
            seconds = within_limit(partial(_convert, session, f"{base}/{name}"), _SECONDS)
        stored = within_limit(lambda: session.read.parquet(f"{base}/rows.parquet").count(), _SECONDS)
    if stored != _ROWS:
        raise StoreDown("spark", f"{stored:,} of {_ROWS:,} rows were written")
    return {"rows/s": _ROWS / seconds}


def schema() -> str:
    """Return the columns of a line in Spark's SQL."""
    types = {ID.name: "BIGINT", **{each.name: _type(each) for each in (CREATED_AT, *rows.dataset().columns)}}
    return ", ".join(f"`{name}` {kind}" for name, kind in types.items())


def _type(column: Column) -> str:
    return _TYPES.get(column.kind, "STRING")


def _convert(session: Any, path: str) -> float:
    """Return the seconds that the batch takes."""
    start = time.perf_counter()
    session.read.schema(schema()).json(f"{path}.json").write.parquet(f"{path}.parquet")
    return time.perf_counter() - start
