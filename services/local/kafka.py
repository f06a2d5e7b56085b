"""Kafka as a program of the stack: one node, which is broker and controller."""

import base64
import logging
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from services.core.errors import NeedsOperator
from services.local import jars, jmx
from services.local.java import java
from services.local.program import Program, made_whole
from services.local.settings import LocalSettings

_LOG4J = Path(__file__).parent / "conf" / "log4j2.properties"
# Without the optimising compiler, which took half of the broker's CPU in its first minute on two cores.
_JVM = ("-Xms512m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
_quiet = logging.getLogger("logpipe.kafka-probe")
_quiet.disabled = True  # librdkafka prints some 20 lines a second while the broker is unreachable


def kafka(settings: LocalSettings) -> Program:
    folder = settings.folder / "kafka"
    address = f"127.0.0.1:{settings.local_kafka_port}"
    configuration, data = folder / "server.properties", folder / "data"
    metrics = settings.local_kafka_metrics_port

    def ready() -> str | None:
        try:
            AdminClient({"bootstrap.servers": address}, logger=_quiet).list_topics(timeout=1)
        except KafkaException as error:
            return str(error.args[0].str())
        return None

    def prepare() -> None:
        if not data.exists():
            with made_whole(data) as part:
                _write(configuration, _server_properties(settings, part))
                _format(folder, configuration)
        _write(configuration, _server_properties(settings, data))

    return Program(
        name="kafka",
        command=(*_java(*_JVM, *jmx.agent(settings, "kafka", metrics)), "kafka.Kafka", str(configuration)),
        folder=folder,
        address=address,
        ports={
            "LOGPIPE_LOCAL_KAFKA_PORT": settings.local_kafka_port,
            "LOGPIPE_LOCAL_KAFKA_CONTROLLER_PORT": settings.local_kafka_controller_port,
            **jmx.ports(settings, "LOGPIPE_LOCAL_KAFKA_METRICS_PORT", metrics),
        },
        ready=ready,
        prepare=prepare,
    )


def _java(*options: str) -> tuple[str, ...]:
    return (java(), *options, f"-Dlog4j2.configurationFile={_LOG4J}", "-cp", jars.kafka_classpath())


def _format(folder: Path, configuration: Path) -> None:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # `--cluster-id` and its value are one word, because the value may begin with a dash.
    arguments = ("format", f"--cluster-id={cluster}", f"--config={configuration}")
    command = (*_java("-Xmx128m", "-XX:TieredStopAtLevel=1"), "kafka.tools.StorageTool", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise NeedsOperator(f"formatting Kafka's data folder failed:\n{done.stdout}{done.stderr}")


def _write(configuration: Path, properties: Mapping[str, str]) -> None:
    configuration.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))


def _server_properties(settings: LocalSettings, data: Path) -> dict[str, str]:
    broker = f"127.0.0.1:{settings.local_kafka_port}"
    controller = f"127.0.0.1:{settings.local_kafka_controller_port}"
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        # Addresses of static voters are not stored, unlike those of dynamic ones, so the port may change between runs.
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "message.max.bytes": str(2 << 20),
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        # After kill -9 the broker is ready within seconds, because the session of the dead broker expires soon.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500",
        "log.cleaner.dedupe.buffer.size": "4194304",  # fits into a small heap
        "log.segment.bytes": str(256 << 20),
    }
