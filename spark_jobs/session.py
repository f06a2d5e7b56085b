"""Opens the Spark session of a job, with the settings that Delta on HDFS needs."""

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
    # With the default, 50, every commit is a job of 50 tasks.
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    # A .crc file of a commit would never be deleted, and every reader lists the log.
    "spark.databricks.delta.writeChecksumFile.enabled": "false",
    # The default waits 0.4 s for each file of the log.
    "spark.hadoop.dfs.client.block.write.locateFollowingBlock.initial.delay.ms": "20",
    # The default type, INT96, is larger and has no statistics.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # Files are smaller than with snappy, and writing them is as fast.
    "spark.sql.parquet.compression.codec": "zstd",
    # With the default, 0, each task sorts its rows by day before it writes them.
    "spark.sql.maxConcurrentOutputFileWriters": "8",
    # A small dataset does not wait behind a large one.
    "spark.scheduler.mode": "FAIR",
    "spark.sql.streaming.stopTimeout": "5s",
    "spark.ui.showConsoleProgress": "false",
    "spark.ui.killEnabled": "false",
}

_JAVA_OPTIONS = (
    "-XX:+UseParallelGC",
    # Four times the defaults. A micro-batch plans its queries by much code that runs a few times. The optimizing
    # compiler takes less time for that code then, and the loops over rows are compiled as early as before.
    "-XX:Tier4InvocationThreshold=20000",
    "-XX:Tier4MinInvocationThreshold=2400",
    "-XX:Tier4CompileThreshold=60000",
)


def open_session(name: str, settings: SparkSettings) -> SparkSession:
    """Start the driver's JVM and return its session. Blocks for some seconds."""
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
        "spark.driver.extraJavaOptions": " ".join((*_JAVA_OPTIONS, settings.spark_java_options)).strip(),
        "spark.ui.enabled": str(settings.spark_ui).lower(),
    }


def _files(names: str) -> str:
    """Write out the jars of each folder: Spark itself takes files only."""
    files: list[Path] = []
    for path in map(Path, names.split(",")):
        files += sorted(path.glob("*.jar")) if path.is_dir() else [path]
    return ",".join(map(str, files))
