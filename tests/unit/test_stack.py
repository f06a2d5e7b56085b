"""The local stack, with a supervisor that only remembers its calls."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.local.supervision import State


@pytest.mark.parametrize("other", [State("RUNNING", 7, ""), State("BACKOFF", 0, "")], ids=["runs", "crashes"])
def test_down_stops_a_program_that_crashes_again_and_again(tmp_path: Path, other: State) -> None:
    stack = Stack(LocalSettings.on_free_ports(tmp_path))
    stack.supervisor = Mock(states=lambda: {"postgres": other, "redis": State("BACKOFF", 0, "exited too quickly")})
    stack.down(("redis",))
    stack.supervisor.stop.assert_called_once_with("redis")
    stack.supervisor.shutdown.assert_not_called()


def test_up_tells_its_watcher_that_it_migrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(LocalSettings.on_free_ports(tmp_path), ("kafka", "ingest-api"))
    running = State("RUNNING", 7, "")
    stack.supervisor = Mock(states=lambda: {"kafka": running, "ingest-api": running}, configure=lambda *_: [])
    monkeypatch.setattr("services.local.stack.migrate", lambda url: None)
    monkeypatch.setattr(stack, "_await_ready", lambda program, given_up: None)
    events: list[tuple[str, str]] = []
    stack.up(lambda name, event: events.append((name, event)))
    assert stack.steps == ("kafka", "tables", "ingest-api")
    of_tables_and_after = [event for event in events if event[0] != "kafka"]
    assert of_tables_and_after == [("tables", "migrating"), ("tables", "ready"), ("ingest-api", "ready")]


def test_a_stack_without_a_program_that_uses_the_tables_does_not_migrate(tmp_path: Path) -> None:
    assert Stack(LocalSettings.on_free_ports(tmp_path), ("postgres", "kafka")).steps == ("postgres", "kafka")
