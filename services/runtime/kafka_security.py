"""How every client of Kafka proves who it is, and checks whom it talks to: librdkafka's clients, and Spark's."""

from services.core.errors import NeedsOperator
from services.runtime.settings import KafkaSecuritySettings

_MODULES = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}


def librdkafka() -> dict[str, str]:
    """Return the settings of a client of librdkafka. Raises NeedsOperator if the environment lacks one."""
    settings = _settings()
    found: dict[str, str] = {"security.protocol": settings.kafka_security_protocol}
    if settings.kafka_ca and settings.has_tls:
        found["ssl.ca.location"] = settings.kafka_ca
    if settings.has_password:
        found |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_username,
            "sasl.password": settings.kafka_password.get_secret_value(),
        }
    return found


def java() -> dict[str, str]:
    """Return the settings of Kafka's own client in a JVM. Raises NeedsOperator if the environment lacks one."""
    settings = _settings()
    found: dict[str, str] = {"security.protocol": settings.kafka_security_protocol}
    if settings.kafka_ca and settings.has_tls:
        found |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": settings.kafka_ca}
    if settings.has_password:
        user, password = map(_quoted, (settings.kafka_username, settings.kafka_password.get_secret_value()))
        module = _MODULES[settings.kafka_sasl_mechanism]
        found |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.jaas.config": f"{module} required username={user} password={password};",
        }
    return found


def spark(url: str) -> dict[str, str]:
    """Return the options of a query of Spark that say which Kafka it reads. Raises NeedsOperator."""
    return {"kafka.bootstrap.servers": url, **{f"kafka.{name}": value for name, value in java().items()}}


def _settings() -> KafkaSecuritySettings:
    settings = KafkaSecuritySettings()
    if settings.has_password and not (settings.kafka_username and settings.kafka_password.get_secret_value()):
        raise NeedsOperator(
            f"LOGPIPE_KAFKA_SECURITY_PROTOCOL={settings.kafka_security_protocol} needs LOGPIPE_KAFKA_USERNAME and"
            " LOGPIPE_KAFKA_PASSWORD"
        )
    return settings


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
