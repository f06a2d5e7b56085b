"""Settings of alerting."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.alerting.rules import Webhook
from services.runtime.settings import KafkaSettings, ListenSettings, Port, PostgresSettings


class AlertingSettings(PostgresSettings, KafkaSettings, ListenSettings):
    model_config = SettingsConfigDict(hide_input_in_errors=True)  # a webhook's address may be a secret

    alerting_port: Port = Field(8088, description="port of health and metrics")
    alert_rules: Path | None = Field(
        None, description="YAML file with the alert rules; without it, 1,000 errors of a service in a minute"
    )
    alert_webhook: Webhook | None = Field(
        None, description="http(s) address that alerts of rules without one of their own are posted to"
    )
    alert_max_age: int = Field(
        3600,
        ge=0,
        description="seconds; errors older than this when accepted are a back-fill and do not count",
    )
