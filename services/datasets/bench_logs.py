"""Log lines of benchmarks, with the columns of `logs`, so that a benchmark writes no row among those of users."""

from services.core.dataset import Column, Dataset

DATASET = Dataset(
    name="bench_logs",
    singular="bench-log",
    plural="bench-logs",
    topic="bench_logs.raw",
    key="service",
    time="timestamp",
    columns=(
        Column("timestamp", "timestamp", required=True),
        Column("level", "category", required=True),
        Column("service", "category", required=True),
        Column("host", "category"),
        Column("message", "text"),
        Column("metadata", "json"),
    ),
    groupings=("level", "service", "host"),
    orderings=("timestamp", "level", "service", "created_at", "id"),
    filters=("level", "service", "host"),
    search="message",
    on_request=True,
)
