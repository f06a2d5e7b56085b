"""Monitoring of the local stack without its binaries: what is absent, what is scraped, what programs are told."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from services.core.errors import NeedsOperator
from services.local import jmx, main, monitoring, processes, targets, view
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.local.supervision import State


@pytest.fixture
def settings(tmp_path: Path) -> LocalSettings:
    return LocalSettings.on_free_ports(tmp_path).model_copy(update={"monitoring": True})


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, said: str = "") -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\necho '{said}'\n")
    file.chmod(0o755)


def test_an_absent_program_is_named_with_the_way_to_get_it(bin_folder: Path) -> None:
    program(bin_folder, "node_exporter")
    absent = monitoring.absent()
    assert absent.keys() == {"prometheus", "postgres-exporter", "redis-exporter"}
    assert "apt-get install prometheus" in absent["prometheus"]
    assert "go install" in absent["postgres-exporter"]


@pytest.mark.parametrize(
    ("said", "is_absent"),
    [
        ("postgres_exporter, version 0.11.1 (branch: debian/sid)", True),
        ("postgres_exporter, version  (branch: )", True),
        ("postgres_exporter, version 0.17.0 (branch: HEAD)", False),
        ("postgres_exporter, version 1.0.0 (branch: HEAD)", False),
    ],
)
def test_an_exporter_that_is_too_old_for_the_server_counts_as_absent(
    bin_folder: Path, said: str, is_absent: bool
) -> None:
    program(bin_folder, "prometheus-postgres-exporter", said)
    assert ("postgres-exporter" in monitoring.absent()) is is_absent


def test_a_stack_has_the_programs_that_the_machine_can_run(bin_folder: Path, settings: LocalSettings) -> None:
    program(bin_folder, "prometheus")
    assert Stack(settings, ("redis",)).names == ("redis", "prometheus")
    assert Stack(settings.model_copy(update={"monitoring": False}), ("redis",)).names == ("redis",)


@pytest.mark.usefixtures("bin_folder")
def test_a_program_that_is_named_and_absent_says_so_when_it_is_prepared(settings: LocalSettings) -> None:
    with pytest.raises(NeedsOperator, match="no prometheus on the PATH: Debian: apt-get install prometheus"):
        monitoring.prometheus(settings).prepare()


def test_targets_are_those_of_the_programs_of_the_stack(settings: LocalSettings) -> None:
    (settings.folder / "prometheus").mkdir()
    targets.write(settings, {"ingest-api-2", "redis", "redis-exporter"})
    assert json.loads(targets.file_of(settings).read_text()) == [
        {
            "targets": [f"127.0.0.1:{settings.local_ingest_2_metrics_port}"],
            "labels": {
                "job": "ingest-api",
                "instance": "ingest-api-2",
                "container": "ingest-api-2",
                "endpoint": "http",
            },
        },
        {
            "targets": [f"127.0.0.1:{settings.local_redis_exporter_port}"],
            "labels": {
                "job": "redis",
                "instance": "redis-exporter",
                "container": "redis-exporter",
                "endpoint": "metrics",
            },
        },
    ]


def test_only_a_stack_with_monitoring_has_ports_for_metrics(settings: LocalSettings) -> None:
    without = settings.model_copy(update={"monitoring": False})
    for make, port in (
        (processes.ingest_api, settings.local_ingest_metrics_port),
        (processes.ingest_api_2, settings.local_ingest_2_metrics_port),
    ):
        assert make(settings).environment["LOGPIPE_INGEST_OWN_PORT"] == str(port)
        assert port in make(settings).ports.values()
        assert "LOGPIPE_INGEST_OWN_PORT" not in make(without).environment
    assert jmx.agent(without, "kafka", 1) == ()
    assert jmx.ports(without, "ANY", 1) == {}


@pytest.mark.parametrize(
    ("arguments", "known", "expected"),
    [
        ((), {}, False),
        (("--with", "monitoring"), {}, True),
        ((), {"prometheus": State("RUNNING", 7, "")}, True),
    ],
    ids=["by default", "wanted", "a stack that has it"],
)
def test_up_starts_monitoring_where_it_is_wanted_and_where_it_is(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], known: dict[str, State], expected: bool
) -> None:
    raised: list[bool] = []
    monkeypatch.setattr(Stack, "states", lambda self: known)
    monkeypatch.setattr(view, "bring_up", lambda console, stack: raised.append(stack.settings.monitoring))
    monkeypatch.setattr(monitoring, "absent", lambda: {"redis-exporter": "no redis_exporter on the PATH: install"})
    done = CliRunner().invoke(main.up, arguments, catch_exceptions=False)
    assert raised == [expected]
    assert ("redis-exporter is absent: no redis_exporter on the PATH" in done.output) is expected
