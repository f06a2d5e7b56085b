"""The Spark session of every job, with the settings that matter to Delta on HDFS."""

import os
from pathlib import Path

from pyspark.sql import SparkSession

from spark_jobs.settings import SparkSettings

PACKAGES = "org.apache.spark:spark-sql-kafka-0-10_2.13:4.0.0,io.delta:delta-spark_4.0_2.13:4.4.0"

_SETTINGS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.adaptive.enabled": "false",
    # The default, 50, makes of every commit a job of 50 tasks.
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    # A .crc file with each commit would never be deleted, and every reader lists the log.
    "spark.databricks.delta.writeChecksumFile.enabled": "false",
    # The default waits 0.4 s for each file of the log.
    "spark.hadoop.dfs.client.block.write.locateFollowingBlock.initial.delay.ms": "20",
    # The default, INT96, is larger and has no statistics.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # As cheap as snappy to write.
    "spark.sql.parquet.compression.codec": "zstd",
    # Else each task sorts its rows by day before it writes them.
    "spark.sql.maxConcurrentOutputFileWriters": "8",
    # A small dataset does not wait behind a large one.
    "spark.scheduler.mode": "FAIR",
    "spark.sql.streaming.stopTimeout": "5s",
    "spark.ui.showConsoleProgress": "false",
    "spark.ui.killEnabled": "false",
    "spark.driver.extraJavaOptions": "-XX:+UseParallelGC",
}


def open_session(name: str, settings: SparkSettings) -> SparkSession:
    """Starts the driver's JVM, which takes some seconds."""
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(__file__).parent / "conf"))
    builder = SparkSession.builder.appName(name).master(settings.spark_master)
    for key, value in (_SETTINGS | _chosen(settings)).items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def _chosen(settings: SparkSettings) -> dict[str, str]:
    jars = {"spark.jars": _files(settings.spark_jars)} if settings.spark_jars else {"spark.jars.packages": PACKAGES}
    return {
        **jars,
        "spark.jars.ivy": str(settings.spark_ivy),
        "spark.driver.memory": settings.spark_memory,
        "spark.ui.enabled": str(settings.spark_ui).lower(),
    }


def _files(names: str) -> str:
    """Write out the jars of each folder: Spark itself takes files only."""
    files: list[Path] = []
    for path in map(Path, names.split(",")):
        files += sorted(path.glob("*.jar")) if path.is_dir() else [path]
    return ",".join(map(str, files))
