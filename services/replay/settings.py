from services.runtime.settings import KafkaSettings, PostgresSettings


class ReplaySettings(PostgresSettings, KafkaSettings):
    """Beside these, the store reads its own."""
