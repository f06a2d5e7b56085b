"""Lake: the files of its tables, their maintenance, the batches that write them, and HDFS below."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from kubernetes.monitoring.dashboards.panels import Series, graph, greatest, mean, new, quantile, rate

_LAKE = 'store="lake"'


def build() -> Dashboard:
    return (
        new("lake", "Lake")
        .with_row(Row("Files"))
        .with_panel(
            graph(
                "Data files: a saw-tooth is healthy, a steady rise means that compaction stands still",
                "short",
                Series(greatest("logpipe_lake_files", "dataset"), "{{dataset}}"),
            )
        )
        .with_panel(
            graph(
                "Small files of the fullest day: compaction merges them at 64",
                "short",
                Series(greatest("logpipe_lake_small_files", "dataset"), "{{dataset}}"),
            )
        )
        .with_panel(
            graph(
                "Files merged by compaction",
                "short",
                Series("sum by (dataset) (increase(logpipe_lake_merged_files_total[1h]))", "{{dataset}}, last hour"),
            )
        )
        .with_panel(
            graph(
                "Size of the tables: growth a day is what retention has to keep",
                "bytes",
                Series(greatest("logpipe_lake_bytes", "dataset"), "{{dataset}}"),
            )
        )
        .with_panel(
            graph(
                "Mean size of a data file: well below 64 MiB, queries open many files",
                "bytes",
                Series(
                    f"{greatest('logpipe_lake_bytes', 'dataset')} / ({greatest('logpipe_lake_files', 'dataset')} > 0)",
                    "{{dataset}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Files in the transaction log: every query lists them; thousands mean that maintain stands still",
                "short",
                Series(greatest("logpipe_lake_log_files", "dataset"), "{{dataset}}"),
            )
        )
        .with_row(Row("Writing"))
        .with_panel(
            graph(
                "Rows written",
                "rowsps",
                Series(rate("logpipe_sink_rows_total", "dataset", _LAKE), "{{dataset}}"),
            )
        )
        .with_panel(
            graph(
                "Time of a batch, and the trigger of Spark: above the trigger, the lake falls behind",
                "s",
                Series(mean("logpipe_sink_write_seconds", "dataset", _LAKE), "{{dataset}} batch"),
                Series(greatest("logpipe_sink_trigger_seconds", "dataset", _LAKE), "{{dataset}} trigger"),
            )
        )
        .with_panel(
            graph(
                "Freshness, p99: objective 60 s",
                "s",
                Series(quantile(0.99, "logpipe_sink_freshness_seconds", "dataset", _LAKE), "{{dataset}}"),
            )
        )
        .with_row(Row("HDFS"))
        .with_panel(
            graph(
                "Capacity: when nothing remains, the lake stops",
                "bytes",
                Series("sum (hdfs_namenode_capacityused_bytes)", "used"),
                Series("sum (hdfs_namenode_capacityremaining_bytes)", "remaining"),
            )
        )
        .with_panel(
            graph(
                "Files and blocks: the NameNode keeps all of them in memory",
                "short",
                Series("sum (hdfs_namenode_filestotal)", "files"),
                Series("sum (hdfs_namenode_blockstotal)", "blocks"),
            )
        )
        .with_panel(
            graph(
                "Blocks missing or with too few replicas: missing must be zero",
                "short",
                Series("sum (hdfs_namenode_missingblocks)", "missing"),
                Series("sum (hdfs_namenode_underreplicatedblocks)", "too few replicas"),
            )
        )
        .with_panel(
            graph(
                "DataNodes: dead must be zero",
                "short",
                Series("sum (hdfs_namenode_numlivedatanodes)", "live"),
                Series("sum (hdfs_namenode_numdeaddatanodes)", "dead"),
            )
        )
        .with_panel(
            graph(
                "Bytes written and read by DataNodes",
                "Bps",
                Series(rate("hdfs_datanode_byteswritten_total"), "written"),
                Series(rate("hdfs_datanode_bytesread_total"), "read"),
            )
        )
    )
