"""What the Prometheus of the stack scrapes: the same labels as in the cluster, in a file that Prometheus watches.

`job` is the name of the workload, `instance` that of the pod (here: of the program). `container` and `endpoint` (the
name of the port) tell several targets of one pod apart.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from services.local.settings import LocalSettings


class Target(NamedTuple):
    """`program`: the target is scraped if the stack has this program."""

    program: str
    job: str
    endpoint: str
    port: int


def write(settings: LocalSettings, names: Collection[str]) -> None:
    """Write the targets of a stack that has the programs `names`. Prometheus reads them without a restart."""
    groups = [
        {
            "targets": [f"127.0.0.1:{target.port}"],
            "labels": {
                "job": target.job,
                "instance": target.program,
                "container": target.program,
                "endpoint": target.endpoint,
            },
        }
        for target in targets(settings)
        if target.program in names
    ]
    file = file_of(settings)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(groups, indent=1))
    part.replace(file)


def file_of(settings: LocalSettings) -> Path:
    return settings.folder / "prometheus" / "targets.json"


def targets(settings: LocalSettings) -> list[Target]:
    jvms = [
        Target("kafka", "kafka", "metrics", settings.local_kafka_metrics_port),
        Target("namenode", "namenode", "metrics", settings.local_namenode_metrics_port),
        Target("datanode", "datanode", "metrics", settings.local_datanode_metrics_port),
        Target("realtime-aggregator", "realtime-aggregator", "metrics", settings.local_realtime_metrics_port),
    ]
    if settings.lake_writer == "spark":
        jvms.append(Target("stream-to-lake", "stream-to-lake", "metrics", settings.local_lake_metrics_port))
    return [
        # Two ingest processes share a port. Each has its own port for its metrics.
        Target("ingest-api", "ingest-api", "http", settings.local_ingest_metrics_port),
        Target("ingest-api-2", "ingest-api", "http", settings.local_ingest_2_metrics_port),
        Target("kafka-source", "kafka-source", "http", settings.kafka_source_port),
        Target("stream-to-store", "stream-to-store", "http", settings.stream_to_store_port),
        Target("stream-to-lake", "stream-to-lake", "http", settings.stream_to_lake_port),
        Target("realtime-aggregator", "realtime-aggregator", "http", settings.realtime_port),
        Target("maintain", "maintain", "http", settings.maintain_port),
        Target("alerting", "alerting", "http", settings.alerting_port),
        Target("query-api", "query-api", "http", settings.query_port),
        Target("generator", "generator", "http", settings.generator_port),
        *jvms,
        Target("node-exporter", "node-exporter", "metrics", settings.local_node_exporter_port),
        Target("postgres-exporter", "postgres", "metrics", settings.local_postgres_exporter_port),
        Target("redis-exporter", "redis", "metrics", settings.local_redis_exporter_port),
    ]
