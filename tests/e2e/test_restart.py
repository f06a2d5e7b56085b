"""The whole stack ends, in order or by kill -9, and starts again, with each lake writer; no row is lost or doubled."""

import time
from collections.abc import Iterator
from typing import get_args

import psutil
import pytest

from services.local.settings import LakeWriter, LocalSettings
from services.local.stack import Stack
from tests.conftest import short_folder
from tests.e2e.load import Accepted, under_load, verify

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=get_args(LakeWriter))
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    with short_folder() as folder:
        settings = LocalSettings.on_free_ports(folder).model_copy(update={"lake_writer": request.param})
        with Stack(settings) as up:
            yield up


def ingest_url(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.settings.ingest_port}"


def restart(stack: Stack) -> None:
    stack.down()
    assert stack.states() == {}
    stack.up()


@pytest.mark.long
def test_a_stack_without_rows_starts_again(stack: Stack) -> None:
    restart(stack)
    verify(stack)


def test_a_stack_with_rows_starts_again(stack: Stack) -> None:
    accepted = Accepted(stack)
    with under_load(ingest_url(stack), seconds=4) as reports:
        pass
    restart(stack)
    accepted.check(reports)
    accepted = Accepted(stack)
    with under_load(ingest_url(stack), seconds=2) as reports:
        pass
    accepted.check(reports)


def test_everything_killed_at_once_under_load_starts_again(stack: Stack) -> None:
    accepted = Accepted(stack)
    with under_load(ingest_url(stack), seconds=8) as reports:
        time.sleep(4)  # in the middle of the load
        supervisor = psutil.Process(stack.supervisor.pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=60)
        stack.up()
    accepted.check(reports)
