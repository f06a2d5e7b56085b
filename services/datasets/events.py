"""User activity events (the "activity" of the HTTP contract)."""

from services.core.dataset import Column, Dataset

DATASET = Dataset(
    name="events",
    singular="activity",
    plural="activities",
    topic="events.activity",
    key="user_id",
    time="timestamp",
    columns=(
        Column("event_id", "uuid", wire="eventId", required=True),
        Column("timestamp", "timestamp", required=True),
        Column("user_id", "text", wire="userId", required=True),
        Column("session_id", "text", wire="sessionId"),
        Column("event_type", "category", wire="eventType", required=True),
        Column("event_data", "json", wire="eventData"),
        Column("device", "json"),
        Column("device_type", "category", wire="deviceType", derived_from=("device", "type")),
    ),
    groupings=("event_type", "device_type"),
    orderings=("timestamp", "event_type", "user_id", "created_at", "id"),
    filters=("event_type", "user_id", "device_type"),
)
