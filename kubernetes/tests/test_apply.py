"""An API server, which runs nothing, accepts every overlay. A warning of Pod Security counts as a failure."""

from pathlib import Path

import pytest
from node import Node
from overlays import OVERLAYS, make_secrets


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda overlay: str(overlay.name))
def test_an_api_server_accepts_the_overlay(overlay: Path) -> None:
    make_secrets()
    assert Node.from_environment().apply_to_api_server(overlay) == ""
