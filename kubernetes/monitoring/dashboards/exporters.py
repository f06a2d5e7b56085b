"""The metrics of others that dashboards and alerts use, by the exporter that serves them.

Our own are in services/core/metric_names.py. A test compares both with every query.
"""

EXPORTERS: dict[str, frozenset[str]] = {
    "prometheus": frozenset({"up"}),
    "process": frozenset({"process_cpu_seconds_total", "process_resident_memory_bytes"}),  # every client library
    "node-exporter": frozenset(
        {
            "node_cpu_seconds_total",
            "node_disk_io_time_seconds_total",
            "node_disk_read_bytes_total",
            "node_disk_written_bytes_total",
            "node_filesystem_avail_bytes",
            "node_load1",
            "node_memory_MemAvailable_bytes",
            "node_memory_MemTotal_bytes",
        }
    ),
    "postgres-exporter": frozenset(
        {
            "pg_database_size_bytes",
            "pg_settings_max_connections",
            "pg_stat_database_numbackends",
            "pg_stat_database_xact_commit",
            "pg_stat_database_xact_rollback",
            "pg_up",
        }
    ),
    "redis-exporter": frozenset(
        {
            "redis_commands_processed_total",
            "redis_evicted_keys_total",
            "redis_memory_max_bytes",
            "redis_memory_used_bytes",
            "redis_up",
        }
    ),
    # The JMX agent: names of the JVM are its own, the others are made by the files in kubernetes/monitoring/jmx.
    "jmx-agent": frozenset({"jvm_gc_collection_seconds_sum", "jvm_memory_used_bytes", "jvm_threads_current"}),
    "jmx-agent kafka": frozenset(
        {
            "kafka_controller_kafkacontroller_activecontrollercount",
            "kafka_controller_kafkacontroller_offlinepartitionscount",
            "kafka_log_size_bytes",
            "kafka_network_request_p99_seconds",
            "kafka_server_brokertopicmetrics_bytesin_total",
            "kafka_server_replicamanager_underreplicatedpartitions",
        }
    ),
    "jmx-agent hdfs": frozenset(
        {
            "hdfs_datanode_bytesread_total",
            "hdfs_datanode_byteswritten_total",
            "hdfs_namenode_blockstotal",
            "hdfs_namenode_capacityremaining_bytes",
            "hdfs_namenode_capacityused_bytes",
            "hdfs_namenode_filestotal",
            "hdfs_namenode_missingblocks",
            "hdfs_namenode_numdeaddatanodes",
            "hdfs_namenode_numlivedatanodes",
            "hdfs_namenode_underreplicatedblocks",
        }
    ),
    "clickhouse": frozenset(
        {
            "ClickHouseMetrics_MemoryTracking",
            "ClickHouseMetrics_PartsActive",
            "ClickHouseProfileEvents_InsertedRows",
        }
    ),
    "kube-state-metrics": frozenset(
        {
            "kube_cronjob_created",
            "kube_cronjob_status_last_successful_time",
            "kube_deployment_status_replicas_unavailable",
            "kube_job_failed",
            "kube_pod_container_status_restarts_total",
            "kube_statefulset_replicas",
            "kube_statefulset_status_replicas_ready",
        }
    ),
}
