"""Application log lines."""

from services.core.dataset import Alert, Column, Dataset

DATASET = Dataset(
    name="logs",
    singular="log",
    plural="logs",
    topic="logs.raw",
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
    alert=Alert("alerts.realtime", "level", "ERROR"),
    search="message",
)
