"""The option of these tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--images-loaded", action="store_true", help="build no image: the node has all of them")
