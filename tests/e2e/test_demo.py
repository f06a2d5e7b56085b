"""`logpipe demo` from an empty folder, with a few seconds of load."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from services import stores
from services.local import demo, footprint_demo
from services.local.settings import LocalSettings
from services.local.stack import Stack


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_the_demo_starts_a_stack_and_finds_every_row_in_every_store(
    stack_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LocalSettings.on_free_ports(stack_folder)
    monkeypatch.setattr(demo, "LocalSettings", lambda: settings)
    stack = Stack(settings)
    try:
        result = CliRunner().invoke(demo.demo, ["--rate", "2000", "--seconds", "5"], catch_exceptions=False)
        running = set(stack.states())
    finally:
        stack.down()
    shown = " ".join(result.output.split())
    assert result.exit_code == 0, result.output
    assert "Nothing lost, nothing doubled." in shown, result.output
    rate = re.search(r"([\d,]+) rows/min for 5 s, acknowledged", shown)
    assert rate, result.output
    assert int(rate[1].replace(",", "")) > 0
    assert [store.label for store in stores.readable() if store.label not in shown] == []
    assert shown.count("equal: ") == 3, result.output  # the same query to every store
    assert running == set(stack.names)


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_the_demo_of_footprints_finds_every_request_in_every_store(
    stack_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LocalSettings.on_free_ports(stack_folder).model_copy(update={"lake_writer": "embedded"})
    monkeypatch.setattr(demo, "LocalSettings", lambda: settings)
    monkeypatch.setattr(footprint_demo, "HISTORY_ROWS", 20_000)
    stack = Stack(settings)
    try:
        result = CliRunner().invoke(demo.demo, ["footprints", "--seconds", "5"], catch_exceptions=False)
    finally:
        stack.down()
    shown = " ".join(result.output.split())
    assert result.exit_code == 0, result.output
    found = re.search(r"20,000 invented footprints and ([\d,]+) requests to the shop, 0 of them dropped", shown)
    assert found, result.output
    requests = found[1]
    assert requests != "0"
    for store in stores.readable():
        assert f"{store.label} │ {requests} │ {requests}" in shown, result.output
