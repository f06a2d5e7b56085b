"""The metrics of the stack's JVMs, served by Prometheus' JMX agent in each JVM of a stack with monitoring."""

from pathlib import Path
from typing import Literal

from services.local import jars
from services.local.settings import LocalSettings

_CONF = Path(__file__).parent / "conf"


def agent(settings: LocalSettings, kind: Literal["kafka", "hdfs", "spark"], port: int) -> tuple[str, ...]:
    """The option of a JVM that makes it serve its metrics on `port` of loopback; none without monitoring."""
    if not settings.monitoring:
        return ()
    (jar,) = jars.resolve(jars.JMX_AGENT).glob("jmx_prometheus_javaagent-*.jar")
    return (f"-javaagent:{jar}=127.0.0.1:{port}:{_CONF / f'jmx-{kind}.yaml'}",)


def ports(settings: LocalSettings, setting: str, port: int) -> dict[str, int]:
    """The port of the agent as `Program.ports` has it."""
    return {setting: port} if settings.monitoring else {}
