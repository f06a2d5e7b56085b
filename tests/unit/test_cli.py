"""The `logpipe` script with a light install: what needs no extra works, every other command names its extra."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from services.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = sorted({command.extras for command in COMMANDS.values()})

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Blocked())
"""
RUN = f"{BLOCK}\nfrom services.cli import main\nmain(prog_name='logpipe')"
IMPORT = f"{BLOCK}\nimport importlib\nfor module in sys.argv[1:]: importlib.import_module(module)"


def required(extras: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for with these extras."""
    lines = [*PROJECT["dependencies"]]
    for extra in filter(None, extras.split(",")):
        lines += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            yield from required(",".join(requirement.extras))
        else:
            yield requirement


def installed(requirements: Iterable[Requirement]) -> set[str]:
    """The distributions that pip installs for these requirements."""
    found: dict[str, set[str]] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        extras = found.setdefault(canonicalize_name(requirement.name), set())
        fresh = ({"", *requirement.extras}) - extras
        if not fresh:
            continue
        extras |= fresh
        for line in importlib.metadata.requires(requirement.name) or ():
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in fresh):
                waiting.append(needed)
    return set(found)


def absent(extras: str) -> set[str]:
    """The top-level modules of this environment that an install with these extras does not have."""
    present = installed(required(extras))
    ours = {"services", "spark_jobs"}
    return {
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if module not in ours and present.isdisjoint(map(canonicalize_name, names))
    }


def run(code: str, extras: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, ",".join(absent(extras)), *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **environment},
    )


def test_the_light_install_is_light() -> None:
    heavy = {"psycopg", "confluent_kafka", "fastapi", "pyarrow", "deltalake", "pyspark", "clickhouse_connect", "chdb"}
    assert heavy <= absent("")


def test_help_lists_all_commands_on_a_line_each() -> None:
    shown = run(RUN, "", "--help")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)


def test_send_needs_no_extra(tmp_path: Path) -> None:
    assert run(RUN, "", "send", "--help").returncode == 0
    file = tmp_path / "app.log"
    file.write_text("2024-01-01 00:00:00,000 INFO a.B: hello\n")
    nobody = "http://127.0.0.1:9"
    sent = run(
        RUN,
        "",
        "send",
        str(file),
        LOGPIPE_INGEST_URL=nobody,
        LOGPIPE_SEND_PATIENCE="0",
        LOGPIPE_SEND_STATE=str(tmp_path / "state"),
    )
    assert sent.returncode == 1
    assert "gave up after 0 s" in sent.stderr


@pytest.mark.parametrize("extras", [extras for extras in EXTRAS if extras])
def test_a_command_names_the_extra_that_is_missing(extras: str) -> None:
    name = next(name for name, command in COMMANDS.items() if command.extras == extras)
    refused = run(RUN, "", name, "--help")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: {name} needs the package ")
    assert refused.stderr.endswith(f"pip install 'logpipe[{extras}]'\n")


@pytest.mark.parametrize("extras", EXTRAS)
def test_the_extras_of_a_command_are_all_that_it_imports(extras: str) -> None:
    modules = [command.target.partition(":")[0] for command in COMMANDS.values() if command.extras == extras]
    imported = run(IMPORT, extras, *modules)
    assert imported.returncode == 0, imported.stderr
