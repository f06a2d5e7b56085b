"""Hosts and JVMs: machines, processes, JVMs and servers."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from kubernetes.monitoring.dashboards.panels import Series, graph, greatest, new, rate, total

_DISKS = 'fstype!~"tmpfs|overlay|squashfs|ramfs|nsfs"'


def build() -> Dashboard:
    return _servers(_processes(_hosts(new("hosts", "Hosts and JVMs"))))


def _hosts(board: Dashboard) -> Dashboard:
    return (
        board.with_row(Row("Machines"))
        .with_panel(
            graph(
                "CPU in use: at the number of cores, everything waits",
                "short",
                Series(
                    rate("node_cpu_seconds_total", "instance, mode", 'mode!~"idle|iowait"'), "{{instance}} {{mode}}"
                ),
            )
        )
        .with_panel(
            graph(
                "Memory available: near zero, the kernel ends processes",
                "bytes",
                Series(total("node_memory_MemAvailable_bytes", "instance"), "{{instance}} available"),
                Series(total("node_memory_MemTotal_bytes", "instance"), "{{instance}} total"),
            )
        )
        .with_panel(
            graph(
                "Free disk space: when nothing is left, stores stop",
                "bytes",
                Series(
                    "min by (instance, device) (node_filesystem_avail_bytes{" + _DISKS + "})", "{{instance}} {{device}}"
                ),
            )
        )
        .with_panel(
            graph(
                "Disks, written and read",
                "Bps",
                Series(rate("node_disk_written_bytes_total", "instance"), "{{instance}} written"),
                Series(rate("node_disk_read_bytes_total", "instance"), "{{instance}} read"),
            )
        )
        .with_panel(
            graph(
                "Disks busy: near 1, the disk is the limit",
                "percentunit",
                Series(
                    "max by (instance, device) (rate(node_disk_io_time_seconds_total[$__rate_interval]))",
                    "{{instance}} {{device}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Load: well above the number of cores, processes wait",
                "short",
                Series(total("node_load1", "instance"), "{{instance}}"),
            )
        )
    )


def _processes(board: Dashboard) -> Dashboard:
    return (
        board.with_row(Row("Processes and JVMs"))
        .with_panel(
            graph(
                "CPU of each process: 1 is one core; a Python process cannot use much more",
                "short",
                Series(rate("process_cpu_seconds_total", "job, instance, endpoint"), "{{instance}} {{endpoint}}"),
                columns=12,
            )
        )
        .with_panel(
            graph(
                "Memory of each process: a steady rise is a leak",
                "bytes",
                Series(total("process_resident_memory_bytes", "job, instance, endpoint"), "{{instance}} {{endpoint}}"),
                columns=12,
            )
        )
        .with_panel(
            graph(
                "Heap in use: a rising lower edge is a leak",
                "bytes",
                Series(total("jvm_memory_used_bytes", "job, instance", 'area="heap"'), "{{instance}}"),
            )
        )
        .with_panel(
            graph(
                "Time in garbage collection: above 0.1, the heap is too small",
                "percentunit",
                Series(rate("jvm_gc_collection_seconds_sum", "job, instance"), "{{instance}}"),
            )
        )
        .with_panel(
            graph(
                "Threads of JVMs: must not grow",
                "short",
                Series(total("jvm_threads_current", "job, instance"), "{{instance}}"),
            )
        )
        .with_panel(
            graph(
                "Targets that answer Prometheus: 0 means down",
                "short",
                Series("min by (job, instance) (up)", "{{job}} {{instance}}"),
            )
        )
        .with_panel(
            graph(
                "Restarts of containers in the last hour: each one has a reason in the log",
                "short",
                Series(
                    "sum by (pod) (increase(kube_pod_container_status_restarts_total[1h]))",
                    "{{pod}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Pods that are not ready: must be zero",
                "short",
                Series(total("kube_deployment_status_replicas_unavailable", "deployment"), "{{deployment}}"),
                Series(
                    "sum by (statefulset) (kube_statefulset_replicas - kube_statefulset_status_replicas_ready)",
                    "{{statefulset}}",
                ),
            )
        )
    )


def _servers(board: Dashboard) -> Dashboard:
    return (
        board.with_row(Row("Servers"))
        .with_panel(
            graph(
                "PostgreSQL, connections: at the limit, processes wait or fail",
                "short",
                Series("sum (pg_stat_database_numbackends)", "connections"),
                Series(greatest("pg_settings_max_connections"), "limit"),
            )
        )
        .with_panel(
            graph(
                "PostgreSQL, transactions: rollbacks should be rare",
                "ops",
                Series(rate("pg_stat_database_xact_commit"), "committed"),
                Series(rate("pg_stat_database_xact_rollback"), "rolled back"),
            )
        )
        .with_panel(
            graph(
                "PostgreSQL, size of databases: growth a day is what retention has to keep",
                "bytes",
                Series(total("pg_database_size_bytes", "datname"), "{{datname}}"),
            )
        )
        .with_panel(
            graph(
                "Kafka, bytes in by topic",
                "Bps",
                Series(rate("kafka_server_brokertopicmetrics_bytesin_total", "topic"), "{{topic}}"),
            )
        )
        .with_panel(
            graph(
                "Kafka, request time p99: rises when the disk is slow (a fetch waits for data)",
                "s",
                Series(greatest("kafka_network_request_p99_seconds", "request"), "{{request}}"),
            )
        )
        .with_panel(
            graph(
                "Kafka, size of topics: grows until retention deletes",
                "bytes",
                Series(total("kafka_log_size_bytes", "topic"), "{{topic}}"),
            )
        )
        .with_panel(
            graph(
                "Kafka, partitions: under-replicated and offline must be zero, controllers one",
                "short",
                Series("sum (kafka_server_replicamanager_underreplicatedpartitions)", "under-replicated"),
                Series("sum (kafka_controller_kafkacontroller_offlinepartitionscount)", "offline"),
                Series("sum (kafka_controller_kafkacontroller_activecontrollercount)", "active controllers"),
            )
        )
        .with_panel(
            graph(
                "Redis, memory: at its limit, old results are dropped",
                "bytes",
                Series(total("redis_memory_used_bytes"), "used"),
                Series(total("redis_memory_max_bytes"), "limit"),
            )
        )
        .with_panel(
            graph(
                "Redis, commands and evicted keys",
                "ops",
                Series(rate("redis_commands_processed_total"), "commands"),
                Series(rate("redis_evicted_keys_total"), "evicted"),
            )
        )
        .with_panel(
            graph(
                "ClickHouse, memory: at its limit, queries fail",
                "bytes",
                Series(total("ClickHouseMetrics_MemoryTracking", "instance"), "{{instance}}"),
            )
        )
        .with_panel(
            graph(
                "ClickHouse, active parts: thousands mean that merges fall behind",
                "short",
                Series(total("ClickHouseMetrics_PartsActive", "instance"), "{{instance}}"),
            )
        )
        .with_panel(
            graph(
                "ClickHouse, rows inserted",
                "rowsps",
                Series(rate("ClickHouseProfileEvents_InsertedRows", "instance"), "{{instance}}"),
            )
        )
    )
