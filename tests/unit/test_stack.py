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
