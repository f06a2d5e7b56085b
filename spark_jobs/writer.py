"""Appends the rows or the rejects of one micro-batch of Kafka messages to a Delta table."""

from collections.abc import Mapping
from typing import Any

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as sql

from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.lake import NAME
from services.lake.table import started
from spark_jobs import parsing

_METRICS_SECONDS = 60.0


def write_rows(
    messages: DataFrame, dataset: Dataset, uri: str, query: str, micro_batch: int, metadata: str
) -> Mapping[str, Any]:
    """Append the valid lines of `messages` to the table at `uri` in one commit, which carries `metadata`.

    Delta skips a commit that the table already has under the same `query` and `micro_batch`. Returns the number of
    `rows` and of `rejected` lines, and the `oldest` and `newest` time of acceptance of the rows, in microseconds (None
    without rows). Raises StoreDown if Delta skipped the commit, and PySparkException.
    """
    observation = Observation()
    is_valid = sql.expr(parsing.validity(dataset)).alias("valid")
    lines = parsing.lines(messages, dataset).select("r", is_valid)
    rows = parsing.rows(lines.observe(observation, *_observed()).where("valid"), dataset)
    (
        rows.coalesce(messages.sparkSession.sparkContext.defaultParallelism)
        .write.format("delta")
        .mode("append")
        .option("txnAppId", query)
        .option("txnVersion", micro_batch)
        .option("userMetadata", metadata)
        .save(uri)
    )
    try:
        return started(lambda: observation.get).result(_METRICS_SECONDS)
    except TimeoutError as error:
        # Delta skipped the write, so the observation never gets a value.
        raise StoreDown(
            NAME,
            f"micro-batch {micro_batch} was stored by another driver, or the table was released: let only one driver"
            " run",
        ) from error


def write_rejects(messages: DataFrame, dataset: Dataset, uri: str, query: str, micro_batch: int) -> None:
    """Append the invalid lines of `messages` to the table of rejects at `uri`. Raises PySparkException."""
    invalid_lines = parsing.lines(messages, dataset).where(f"NOT {parsing.validity(dataset)}")
    (
        parsing.rejects(invalid_lines, dataset)
        .coalesce(1)
        .write.format("delta")
        .mode("append")
        .option("txnAppId", f"{query}-rejects")
        .option("txnVersion", micro_batch)
        .save(uri)
    )


def _observed() -> list[Column]:
    rows = "sum(IF(valid, 1L, 0L))"
    created_at = "IF(valid, r.created_at, NULL)"
    return [
        sql.expr(f"coalesce({rows}, 0L) AS rows"),
        sql.expr(f"count(1) - coalesce({rows}, 0L) AS rejected"),
        sql.expr(f"min({created_at}) AS oldest"),
        sql.expr(f"max({created_at}) AS newest"),
    ]
