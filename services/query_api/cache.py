"""Answers kept in Redis: a query to one engine as of one batch, in one scope (see `scopes`), has one answer.

Redis is a help, never a need: when it is away or hangs, the store answers, and Redis is left alone for a while. An
answer with rows that retention was about to drop, given after the floor was raised, is kept until its time is up.
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
_REST_SECONDS = 5.0

_log = logs.get("cache")
_decoder = msgspec.msgpack.Decoder(QueryResult)

Result = TypeVar("Result")


class CacheSettings(Settings):
    redis_url: SecretStr | None = Field(
        None, description="where answers are kept: redis://host:port/database, of this pipeline alone"
    )
    cache_seconds: int = Field(300, gt=0, description="how long an answer is kept")
    cache_answer_bytes: int = Field(1 << 20, gt=0, description="a larger answer is not kept")


class ResultCache:
    """Thread-safe. Raises nothing of Redis; each request to it may take 20 ms, and after a failure none for 5 s."""

    def __init__(self, url: str, seconds: int, answer_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._seconds = seconds
        self._answer_bytes = answer_bytes
        self._clock = clock
        self._rest_until = 0.0

    def answer(self, engine: str, scope: str, query: Query, as_of: int, ask: Callable[[], QueryResult]) -> QueryResult:
        """The answer that is kept, by method "cache"; else that of `ask`."""
        start = time.perf_counter()
        # The text of a query holds its dataset's whole description: when that changes, so does the key.
        key = f"logpipe:{xxhash.xxh3_128_hexdigest(repr((engine, scope, query, as_of)).encode())}"
        found = self._try(lambda: self._redis.get(key))
        if isinstance(found, bytes):
            with suppress(msgspec.DecodeError):  # written by another version
                answer = _decoder.decode(found)
                metrics.counter(metric_names.CACHE_LOOKUPS, "hit").inc()
                took = (time.perf_counter() - start) * 1e3
                return replace(answer, method="cache", elapsed_ms=took, first_ms=answer.elapsed_ms)
        metrics.counter(metric_names.CACHE_LOOKUPS, "away" if self._resting else "miss").inc()
        answer = ask()
        value = msgspec.msgpack.encode(answer)
        if len(value) <= self._answer_bytes:
            self._try(lambda: self._redis.set(key, value, ex=self._seconds))
        return answer

    def close(self) -> None:
        self._redis.close()

    @property
    def _resting(self) -> bool:
        return self._clock() < self._rest_until

    def _try(self, work: Callable[[], Result]) -> Result | None:
        if self._resting:
            return None
        try:
            return work()
        except redis.RedisError as error:
            self._rest_until = self._clock() + _REST_SECONDS
            _log.warning("Redis does not answer; stores do", seconds=_REST_SECONDS, error=str(error))
            return None


def open_cache(settings: CacheSettings) -> ResultCache | None:
    if settings.redis_url is None:
        return None
    return ResultCache(settings.redis_url.get_secret_value(), settings.cache_seconds, settings.cache_answer_bytes)
