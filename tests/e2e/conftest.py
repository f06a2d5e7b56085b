"""One whole stack for the end-to-end tests of a file: every component and every process, on free ports."""

from collections.abc import Iterator

import pytest

from services.local.stack import Stack
from tests.conftest import running


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=1, help="seeded runs of each fault (the full suite: 3)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(1, metafunc.config.getoption("--seeds") + 1))


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running() as up:
        yield up
