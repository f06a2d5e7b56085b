"""Request footprints: one row for each HTTP request that a service has answered."""

from services.core.dataset import Column, Dataset

DATASET = Dataset(
    name="footprints",
    singular="footprint",
    plural="footprints",
    topic="footprints.raw",
    key="service",
    time="footprint_time",
    columns=(
        Column("method", "category", required=True),
        Column("link", "text", required=True),
        Column("footprint_time", "timestamp", required=True),
        Column("status", "number"),
        Column("duration_ms", "number"),
        Column("route", "category"),
        Column("service", "category"),
    ),
    groupings=("method", "route", "service"),
    orderings=("footprint_time", "method", "service", "created_at", "id"),
    filters=("method", "route", "service"),
)
