"""Results cached in Redis. A query to one engine as of one batch, in one scope (see `scopes`), has one result.

Redis is optional. While it is unreachable or hangs, the stores run the queries, and Redis gets no request for some
seconds. A result that was computed after the floor was raised, and before retention dropped the rows, stays cached
until it expires.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import msgspec
import redis
import xxhash
from pydantic import Field, SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.core import metric_names
from services.core.queries import Query, QueryResult
from services.runtime import logs, metrics
from services.runtime.settings import Settings

_TIMEOUT_SECONDS = 0.02
_PAUSE_SECONDS = 5.0

_log = logs.get("cache")
_decoder = msgspec.msgpack.Decoder(QueryResult)

Result = TypeVar("Result")


class CacheSettings(Settings):
    redis_url: SecretStr | None = Field(
        None, description="where results are cached: redis://host:port/database, used by this pipeline only"
    )
    cache_seconds: int = Field(300, gt=0, description="time until a cached result expires")
    cache_answer_bytes: int = Field(1 << 20, gt=0, description="a larger result is not cached")


class ResultCache:
    """Thread-safe. Raises no error of Redis. A request takes 20 ms at most, and a failure pauses requests for 5 s."""

    def __init__(self, url: str, seconds: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._paused_until = 0.0

    def result(
        self, engine: str, scope: str, query: Query, as_of: int, execute: Callable[[], QueryResult]
    ) -> QueryResult:
        """Return the cached result, with the method "cache"; else the result of `execute`. Blocks."""
        start = time.perf_counter()
        # The text of a query contains its dataset's whole description, so the key changes with the description.
        key = f"logpipe:{xxhash.xxh3_128_hexdigest(repr((engine, scope, query, as_of)).encode())}"
        found = self._try(lambda: self._redis.get(key))
        if isinstance(found, bytes):
            with suppress(msgspec.DecodeError):  # written by another version
                result = _decoder.decode(found)
                metrics.counter(metric_names.CACHE_LOOKUPS, "hit").inc()
                took = (time.perf_counter() - start) * 1e3
                return replace(result, method="cache", elapsed_ms=took, first_ms=result.elapsed_ms)
        metrics.counter(metric_names.CACHE_LOOKUPS, "unreachable" if self._paused else "miss").inc()
        result = execute()
        value = msgspec.msgpack.encode(result)
        if len(value) <= self._max_bytes:
            self._try(lambda: self._redis.set(key, value, ex=self._seconds))
        return result

    def close(self) -> None:
        self._redis.close()

    @property
    def _paused(self) -> bool:
        return self._clock() < self._paused_until

    def _try(self, work: Callable[[], Result]) -> Result | None:
        if self._paused:
            return None
        try:
            return work()
        except redis.RedisError as error:
            self._paused_until = self._clock() + _PAUSE_SECONDS
            _log.warning("Redis request failed, cache paused", seconds=_PAUSE_SECONDS, error=str(error))
            return None


def open_cache(settings: CacheSettings) -> ResultCache | None:
    if settings.redis_url is None:
        return None
    return ResultCache(settings.redis_url.get_secret_value(), settings.cache_seconds, settings.cache_answer_bytes)
