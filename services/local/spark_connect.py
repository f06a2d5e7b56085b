"""Spark Connect as a program of the stack: the lake's second engine, on one core. It is started only by its name."""

import socket
import sys
from pathlib import Path

from services.local import jars
from services.local.program import Program
from services.local.settings import LocalSettings

_SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"

_SETTINGS = {
    "spark.log.level": "WARN",
    "spark.ui.enabled": "false",
    "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:+ExitOnOutOfMemoryError",
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.session.timeZone": "UTC",
    # On one core, more tasks gain nothing, nor does planning again between two stages.
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.adaptive.enabled": "false",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "1",
    # Above this limit, rows are sorted on disk, because a selection of the first n rows reserves memory for n rows.
    "spark.sql.execution.topKSortFallbackThreshold": "100000",
}


def spark_connect(settings: LocalSettings) -> Program:
    folder = settings.folder / "spark-connect"
    port = settings.local_spark_connect_port
    options = {
        **_SETTINGS,
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
    }

    def ready() -> str | None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError as error:
            return str(error)
        return None

    return Program(
        name="spark-connect",
        command=(
            str(Path(sys.executable).with_name("spark-submit")),
            *("--master", "local[1]", "--name", "spark-connect", "--driver-memory", "512m"),
            *("--jars", ",".join(jars.spark_jars())),
            *(word for key, value in options.items() for word in ("--conf", f"{key}={value}")),
            *("--class", _SERVER, "spark-internal"),
        ),
        folder=folder,
        address=f"sc://127.0.0.1:{port}",
        ports={"LOGPIPE_LOCAL_SPARK_CONNECT_PORT": port},
        ready=ready,
        environment={
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(folder / "scratch"),
        },
    )
