"""The settings of the middleware: arguments first, then environment variables, then defaults.

The setting `queue` is the argument `queue` and the variable FOOTPRINTS_QUEUE. Lists are comma-separated in a variable.
FOOTPRINTS_KAFKA names the brokers, and any other variable FOOTPRINTS_KAFKA_X_Y sets `x.y` of librdkafka, for example
FOOTPRINTS_KAFKA_SASL_PASSWORD. A wrong setting raises ValueError, which names it, when the app builds its middleware.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict
from zoneinfo import ZoneInfo

PREFIX = "FOOTPRINTS_"
_KAFKA_PREFIX = "FOOTPRINTS_KAFKA_"

HEALTH_AND_METRICS = ("*/health", "*/healthz", "*/livez", "*/ready", "*/readyz", "/health/*", "/metrics", "/metrics/*")


class Arguments(TypedDict, total=False):
    """The fields of Settings, for the type checker of an app that calls `add_middleware`."""

    service: str
    enabled: bool
    kafka: str
    kafka_config: Mapping[str, str]
    topic: str
    timezone: str
    include: Sequence[str]
    exclude: Sequence[str]
    sample: float
    max_link: int
    queue: int
    delivery_seconds: float
    flush_seconds: float


@dataclass(frozen=True, slots=True)
class Settings:
    """Patterns match whole paths; they have the wildcards `*`, `?` and `[...]` of the standard library's fnmatch.

    `footprint.Selection` says which paths longer than 2,048 characters are recorded.
    """

    service: str = ""
    """Name of the app, in each message."""

    enabled: bool = True
    """False: requests pass untouched, and no thread is started."""

    kafka: str = "localhost:9092"
    """Bootstrap servers, comma-separated host:port."""

    kafka_config: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further configuration of librdkafka, such as TLS and SASL. It may hold passwords."""

    topic: str = "web-logs-topic"

    timezone: str = "Asia/Seoul"
    """IANA name of the zone in which `footprint_time` is written."""

    include: tuple[str, ...] = ("*",)
    """Patterns of paths that are recorded."""

    exclude: tuple[str, ...] = HEALTH_AND_METRICS
    """Patterns of paths that are not recorded, although `include` names them."""

    sample: float = 1.0
    """Share of the requests that are recorded, chosen at random: 0 to 1."""

    max_link: int = 256
    """Characters of a path that are kept. A longer path is cut, and then ends in `…`."""

    queue: int = 10_000
    """Requests that wait for the background thread, and messages that wait for Kafka, at most. More are dropped."""

    delivery_seconds: float = 60.0
    """Time after which a message that Kafka has not taken is dropped."""

    flush_seconds: float = 3.0
    """The most time that the shutdown waits until all messages are delivered."""

    def __post_init__(self) -> None:
        try:
            ZoneInfo(self.timezone)
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f"footprints: timezone={self.timezone!r}: there is no such time zone") from error
        _check(bool(self.kafka), "kafka", self.kafka, "host:port")
        _check(bool(self.topic), "topic", self.topic, "the name of a topic")
        _check(0 <= self.sample <= 1, "sample", self.sample, "a number from 0 to 1")
        _check(self.max_link >= 1, "max_link", self.max_link, "a number of at least 1")
        _check(self.queue >= 1, "queue", self.queue, "a number of at least 1")
        _check(self.delivery_seconds > 0, "delivery_seconds", self.delivery_seconds, "a number above 0")
        _check(self.flush_seconds >= 0, "flush_seconds", self.flush_seconds, "a number of at least 0")

    @classmethod
    def read(cls, arguments: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> "Settings":
        """Raises ValueError for a wrong value, and TypeError for an argument that is no setting."""
        values: dict[str, Any] = {}
        for each in fields(cls):
            name = PREFIX + each.name.upper()
            if each.name != "kafka_config" and name in environment:
                values[each.name] = _parsed(each.name, environment[name], getattr(_DEFAULTS, each.name))
        values["kafka_config"] = {
            name.removeprefix(_KAFKA_PREFIX).lower().replace("_", "."): value
            for name, value in environment.items()
            if name.startswith(_KAFKA_PREFIX)
        }
        values |= arguments
        for name in ("include", "exclude"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


def _check(right: bool, name: str, value: object, expected: str) -> None:
    if not right:
        raise ValueError(f"footprints: {name}={value!r}: expected {expected}")


def _parsed(name: str, text: str, default: object) -> object:
    """Read the text of a variable as a value of the default's type."""
    if isinstance(default, tuple):
        return tuple(filter(None, map(str.strip, text.split(","))))
    if isinstance(default, bool):
        _check(text.lower() in ("true", "1", "false", "0"), name, text, "true or false")
        return text.lower() in ("true", "1")
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            _check(False, name, text, "a number")
    return text


_DEFAULTS = Settings()
