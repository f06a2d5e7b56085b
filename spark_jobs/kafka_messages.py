"""Reads the messages of a topic by Spark's Kafka source, as a stream or once."""

from typing import Any

from pyspark.sql import DataFrame, SparkSession

from services.runtime import kafka_security
from spark_jobs import parsing


def stream(spark: SparkSession, url: str, topic: str, **options: Any) -> DataFrame:
    """Return the messages of `topic` without end, with the columns of `parsing.MESSAGE`. Raises NeedsOperator."""
    return (
        spark.readStream.format("kafka").options(**{**_source(url, topic), **options}).load().select(*parsing.MESSAGE)
    )


def batch(spark: SparkSession, url: str, topic: str, **options: Any) -> DataFrame:
    """Return messages of `topic`, as `stream` does, between the offsets that `options` name. Raises NeedsOperator."""
    return spark.read.format("kafka").options(**{**_source(url, topic), **options}).load().select(*parsing.MESSAGE)


def _source(url: str, topic: str) -> dict[str, str]:
    return {
        **kafka_security.spark(url),
        "kafka.isolation.level": "read_committed",
        "subscribe": topic,
        "includeHeaders": "true",
        "failOnDataLoss": "true",
    }
