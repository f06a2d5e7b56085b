"""Control arm of Kafka: its own kafka-producer-perf-test sends messages like ours into a topic of its own."""

import os
import re
import secrets
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from services.bench.probes.controls import rows
from services.bench.target.urls import Target
from services.core import kafka_value
from services.core.errors import NeedsOperator, StoreDown
from services.runtime import kafka_security
from services.runtime.settings import KafkaSettings
from services.streams import topics
from services.streams.kafka import PUBLISHING
from services.streams.kafka_client import NAME

PREFIX = "bench-control-"
"""The names of the topics begin with it."""

_BYTES = 200_000_000
_SECONDS = 300.0
_ROWS = 20_000  # distinct ones; their messages are sent again and again, in a random order
_DELIMITER = "~~next~~"  # a regular expression for the tool, and no part of any row
_PUBLISHER = {**PUBLISHING, "batch.size": "1000000"}
"""As the publisher sends, but without its transactions. librdkafka's default of batch.size is this number."""

_TOTAL = re.compile(r"^(\d+) records sent, ([\d.]+) records/sec \(.*99\.9th\.$", re.MULTILINE)
"""The last line of the output. The lines before it, one for each interval, have no percentiles."""


class Sent(NamedTuple):
    records: int
    records_per_second: float


def produce(target: Target) -> Mapping[str, float]:
    settings = KafkaSettings().model_copy(update={"kafka_url": target.url("LOGPIPE_KAFKA_URL")})
    values, count = _messages(settings.kafka_partitions)
    size = sum(map(len, values)) / len(values)
    command = target.producer_perf()
    with _topic(settings) as topic:
        sent = _send(command, settings.kafka_url, topic, values, max(1, round(_BYTES / size)))
    return {"rows/s": sent.records_per_second * count / len(values), "MB/s": sent.records_per_second * size / 1e6}


def total(output: str) -> Sent:
    """Return what the output of kafka-producer-perf-test says in its last line. Raises StoreDown if it has none."""
    if found := _TOTAL.search(output):
        return Sent(int(found[1]), float(found[2]))
    raise StoreDown(NAME, f"kafka-producer-perf-test printed no result: {output.strip()[-500:]}")


def properties(values: Mapping[str, str]) -> str:
    """Return a properties file of Java, in which a backslash begins an escape, and letters are ASCII."""
    return "".join(f"{name}={_escaped(value)}\n" for name, value in values.items())


def _escaped(value: str) -> str:
    units = struct.iter_unpack(">H", value.replace("\\", "\\\\").encode("utf-16-be"))
    return "".join(chr(unit) if unit < 127 else f"\\u{unit:04x}" for (unit,) in units)


def _messages(partitions: int) -> tuple[list[bytes], int]:
    """Return the values of our messages of _ROWS rows, and the number of rows."""
    dataset = rows.dataset()
    values = [
        message.value
        for batch in rows.batches(_ROWS)
        for message in kafka_value.encode(dataset, *batch, partitions)
        if message.topic == dataset.topic
    ]
    return values, _ROWS


@contextmanager
def _topic(settings: KafkaSettings) -> Iterator[str]:
    """Make a topic with the partitions and replicas of ours, and delete it afterwards. Raises StoreDown."""
    name = PREFIX + secrets.token_hex(4)
    try:
        topics.ensure_topics(settings.kafka_url, {name: settings.kafka_partitions}, settings.kafka_replication)
        yield name
    finally:
        topics.delete(settings.kafka_url, name)


def _send(command: Sequence[str], url: str, topic: str, values: Sequence[bytes], records: int) -> Sent:
    with tempfile.TemporaryDirectory(prefix="logpipe-kafka-") as name:  # only this user may read it
        payload, configuration = Path(name) / "payload", Path(name) / "producer.properties"
        payload.write_bytes(_DELIMITER.encode().join(values))
        configuration.write_text(properties({"bootstrap.servers": url, **_PUBLISHER, **kafka_security.java()}))
        options = {
            "--topic": topic,
            "--num-records": str(records),
            "--throughput": "-1",
            "--payload-file": str(payload),
            "--payload-delimiter": _DELIMITER,
            "--producer.config": str(configuration),  # deprecated, and known to older releases, too
        }
        try:
            done = subprocess.run(
                [*command, *(word for pair in options.items() for word in pair)],
                env={**os.environ, "LC_ALL": "C"},  # numbers with a point
                capture_output=True,
                text=True,
                check=False,
                timeout=_SECONDS,
            )
        except OSError as error:
            raise NeedsOperator(f"kafka-producer-perf-test does not start: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise StoreDown(NAME, f"kafka-producer-perf-test did not end within {_SECONDS:g} s") from error
    if done.returncode:
        raise StoreDown(NAME, f"kafka-producer-perf-test failed: {(done.stderr or done.stdout).strip()[-500:]}")
    sent = total(done.stdout)
    if sent.records != records:
        raise StoreDown(NAME, f"{sent.records:,} of {records:,} records were accepted: {done.stderr.strip()[-500:]}")
    return sent
