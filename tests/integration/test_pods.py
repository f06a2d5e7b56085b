"""Every process and command with what a pod gives it: URLs by the environment, a user without name and home, and a file
system that is read-only but for /tmp.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.conftest import running
from tests.processes import free_port
from tests.skips import needs_package, needs_privilege
from tests.waiting import until

ROOT = Path(__file__).parents[2]
READ_ONLY = "mount -o remount,ro,bind / && mount -t tmpfs tmpfs /tmp"
NOBODY = "unshare --user --map-user=12345 --map-group=12345"
ROW = {"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "s", "message": "m"}
PROCESSES = {
    "ingest-api": "LOGPIPE_INGEST_PORT",
    "stream-to-store --store clickhouse": "LOGPIPE_STREAM_TO_STORE_PORT",
    "stream-to-store --store lake": "LOGPIPE_STREAM_TO_STORE_PORT",
    "query-api": "LOGPIPE_QUERY_PORT",
    "maintain": "LOGPIPE_MAINTAIN_PORT",
    "alerting": "LOGPIPE_ALERTING_PORT",
    "generator": "LOGPIPE_GENERATOR_PORT",
    "disk-space --folder /": "LOGPIPE_DISK_SPACE_PORT",
}


def in_pod(environment: dict[str, str], *command: str) -> list[str]:
    """The command line that runs the command as in a pod."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    inner = shlex.join([*NOBODY.split(), "env", "--ignore-environment", "--chdir=/", *variables, *command])
    return ["unshare", "--mount", "sh", "-c", f"{READ_ONLY} && exec {inner}"]


def logpipe(environment: dict[str, str], arguments: str) -> list[str]:
    return in_pod({"PYTHONPATH": str(ROOT), **environment}, sys.executable, "-m", "services", *arguments.split())


def run(environment: dict[str, str], arguments: str) -> str:
    done = subprocess.run(logpipe(environment, arguments), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    if sys.platform != "linux":
        needs_privilege("namespaces of Linux")
    try:
        tried = subprocess.run(in_pod({}, "id", "-u"), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        needs_package("util-linux")
    if tried.stdout != "12345\n":
        needs_privilege(f"namespaces: {tried.stderr}")
    with running("postgres", "kafka", "clickhouse", "namenode", "datanode", "redis") as stack:
        found = {name: url for name, url in stack.settings.urls().items() if name.endswith("_URL")}
        postgres, _, passfile = found["LOGPIPE_POSTGRES_URL"].partition("?passfile=")
        password = (Path.cwd() / passfile).read_text().strip().rsplit(":", 1)[1]
        found["LOGPIPE_POSTGRES_URL"] = postgres.replace("logpipe@", f"logpipe:{password}@")
        yield found


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_all_processes_and_commands_work_with_urls_alone(urls: dict[str, str], tmp_path: Path) -> None:
    assert "all tables are those of this release" in run(urls, "migrate")
    with ExitStack() as started:
        addresses: dict[str, str] = {}
        for command, variable in PROCESSES.items():
            port = free_port()
            log = tmp_path / f"{command.split()[0]}-{port}.log"
            output = started.enter_context(log.open("wb"))
            environment = {**urls, variable: str(port), "LOGPIPE_INGEST_URL": addresses.get("ingest-api", "")}
            process = subprocess.Popen(
                logpipe(environment, command), stdout=output, stderr=output, start_new_session=True
            )
            started.callback(process.wait, 30)
            started.callback(process.terminate)
            addresses[command] = f"http://127.0.0.1:{port}"
            until(lambda: is_ready(addresses[command]), about=lambda: f"{command}: {log.read_text()[-4000:]}")  # noqa: B023
        sent = httpx.post(f"{addresses['ingest-api']}/api/collect/logs", json=[ROW] * 500, timeout=30)
        assert sent.status_code == 200, sent.text
        report = run(urls, "verify --sample 20 --wait 60 --json")
        assert '"ok":true' in report
        found = httpx.get(f"{addresses['query-api']}/api/query/compare/logs?limit=10", timeout=60)
        assert found.status_code == 200, found.text
        for store in ("clickhouse", "lake"):
            assert f"logs into {store}: 0 rows replayed" in run(urls, f"replay --store {store}")
        assert "backup written to /tmp/backups" in run(urls, "backup /tmp/backups")
        assert "done" in run(urls, "maintain --once")
        assert "slot" in run(urls, "slots")


def test_every_module_of_a_command_is_imported_by_a_user_without_a_home(urls: dict[str, str]) -> None:
    code = (
        "import importlib; from services.cli import COMMANDS;"
        " [importlib.import_module(c.target.partition(':')[0]) for c in COMMANDS.values() if c.extras != 'local']"
    )
    done = subprocess.run(
        in_pod({"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}, sys.executable, "-c", code),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
