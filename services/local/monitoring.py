"""Prometheus and its exporters as programs of the stack, where their binaries are on the machine.

No program of the stack needs them. `logpipe up --with monitoring` starts those that are installed.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from services.core.errors import NeedsOperator
from services.local import passwords, postgres_roles, targets
from services.local.program import Program, http_ready
from services.local.settings import LocalSettings

_RULES = Path(__file__).parent / "conf" / "alert_rules.yaml"
_SCRAPE_INTERVAL = "5s"
_KEPT = ("--storage.tsdb.retention.time=15d", "--storage.tsdb.retention.size=1GB")
# Figures of each table, and so of each day's partition, would be thousands; those of the WAL need a right that the
# pipeline's role does not have.
_POSTGRES_OPTIONS = ("--no-collector.stat_user_tables", "--no-collector.statio_user_tables", "--no-collector.wal")
_NODE_COLLECTORS = ("cpu", "diskstats", "filesystem", "loadavg", "meminfo")  # as in the cluster


@dataclass(frozen=True, slots=True)
class _Binary:
    """`names`: the first one on the PATH is used. `least`: the oldest version that works."""

    names: tuple[str, ...]
    advice: str
    least: tuple[int, int] = (0, 0)

    def path(self) -> str:
        """The path of the binary; its usual name if there is none, which `problem` explains."""
        return next(filter(None, map(shutil.which, self.names)), self.names[0])

    def problem(self) -> str | None:
        """Return why the program cannot run, and how to get it; None if it can."""
        path = self.path()
        if not Path(path).is_absolute():
            return f"no {' or '.join(self.names)} on the PATH: {self.advice}"
        if self.least == (0, 0):
            return None
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"version (\d+)\.(\d+)", done.stdout + done.stderr)
        if version is None or (int(version[1]), int(version[2])) < self.least:
            found = version[0] if version else "of an unknown version"
            return f"{path} is {found}, and {'.'.join(map(str, self.least))} is needed: {self.advice}"
        return None


_BINARIES: Mapping[str, _Binary] = {
    "prometheus": _Binary(("prometheus",), "Debian: apt-get install prometheus"),
    "node-exporter": _Binary(
        ("node_exporter", "prometheus-node-exporter"), "Debian: apt-get install prometheus-node-exporter"
    ),
    "postgres-exporter": _Binary(
        ("postgres_exporter", "prometheus-postgres-exporter"),
        "go install github.com/prometheus-community/postgres_exporter/cmd/postgres_exporter@v0.17.1, and add its folder"
        " to the PATH (the package of Debian 12 is too old for PostgreSQL 18)",
        least=(0, 17),
    ),
    "redis-exporter": _Binary(
        ("redis_exporter", "prometheus-redis-exporter"), "Debian: apt-get install prometheus-redis-exporter"
    ),
}
NAMES = tuple(_BINARIES)


def absent() -> dict[str, str]:
    """Name of each program that this machine cannot run -> why, and how to get it."""
    return {name: problem for name, binary in _BINARIES.items() if (problem := binary.problem())}


def prometheus(settings: LocalSettings) -> Program:
    port = settings.local_prometheus_port
    folder = settings.folder / "prometheus"
    configuration = folder / "prometheus.yml"
    address = f"http://127.0.0.1:{port}"

    def prepare() -> None:
        _require("prometheus")
        configuration.write_text(yaml.safe_dump(_configuration(settings), sort_keys=False))

    return Program(
        name="prometheus",
        command=(
            _BINARIES["prometheus"].path(),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            *_KEPT,
            f"--web.listen-address=127.0.0.1:{port}",
            f"--web.cors.origin={re.escape(address)}",  # by default, any web page may read everything
        ),
        folder=folder,
        address=address,
        ports={"LOGPIPE_LOCAL_PROMETHEUS_PORT": port},
        ready=http_ready(f"{address}/-/ready"),
        prepare=prepare,
    )


def _configuration(settings: LocalSettings) -> dict[str, object]:
    return {
        "global": {"scrape_interval": _SCRAPE_INTERVAL, "evaluation_interval": _SCRAPE_INTERVAL},
        "rule_files": [str(_RULES)],
        "scrape_configs": [
            {"job_name": "stack", "file_sd_configs": [{"files": [str(targets.file_of(settings))]}]},
        ],
    }


def node_exporter(settings: LocalSettings) -> Program:
    port = settings.local_node_exporter_port
    collectors = (f"--collector.{name}" for name in _NODE_COLLECTORS)
    return _exporter(
        settings,
        "node-exporter",
        "LOGPIPE_LOCAL_NODE_EXPORTER_PORT",
        port,
        (f"--web.listen-address=127.0.0.1:{port}", "--collector.disable-defaults", *collectors),
        {},
    )


def postgres_exporter(settings: LocalSettings) -> Program:
    port = settings.local_postgres_exporter_port
    environment = {"DATA_SOURCE_NAME": settings.urls()["LOGPIPE_POSTGRES_URL"]}
    if not settings.is_replaced("postgres_url"):
        # The exporter's driver knows the password file by its variable only, and asks for TLS, which this server lacks.
        address = f"127.0.0.1:{settings.local_postgres_port}/{postgres_roles.DATABASE}"
        environment = {
            "DATA_SOURCE_NAME": f"postgresql://{passwords.POSTGRES_ROLE}@{address}?sslmode=disable",
            "PGPASSFILE": str(passwords.postgres_file(settings.folder)),
        }
    return _exporter(
        settings,
        "postgres-exporter",
        "LOGPIPE_LOCAL_POSTGRES_EXPORTER_PORT",
        port,
        (f"--web.listen-address=127.0.0.1:{port}", *_POSTGRES_OPTIONS),
        environment,
    )


def redis_exporter(settings: LocalSettings) -> Program:
    port = settings.local_redis_exporter_port
    url = settings.urls()["LOGPIPE_REDIS_URL"]
    if not settings.is_replaced("redis_url"):
        address = f"127.0.0.1:{settings.local_redis_port}"
        url = f"redis://{passwords.REDIS_WATCHER}:{passwords.redis(settings.folder)}@{address}"
    return _exporter(
        settings,
        "redis-exporter",
        "LOGPIPE_LOCAL_REDIS_EXPORTER_PORT",
        port,
        (f"-web.listen-address=127.0.0.1:{port}",),
        {"REDIS_ADDR": url},
    )


def _exporter(
    settings: LocalSettings,
    name: str,
    setting: str,
    port: int,
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
) -> Program:
    """An exporter is ready when it serves its metrics, also if what it watches is unreachable."""
    address = f"http://127.0.0.1:{port}"
    return Program(
        name=name,
        command=(_BINARIES[name].path(), *arguments),
        folder=settings.folder / name,
        address=address,
        ports={setting: port},
        ready=http_ready(f"{address}/metrics"),
        prepare=lambda: _require(name),
        environment=environment,
    )


def _require(name: str) -> None:
    if problem := _BINARIES[name].problem():
        raise NeedsOperator(f"{name} cannot be started: {problem}")
