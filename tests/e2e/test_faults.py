"""Crashes and outages under load, each followed by a `verify` that finds every accepted row once."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Set
from uuid import UUID

import psycopg
import pytest

from services import datasets
from services.local.stack import Stack
from tests.e2e.load import Accepted, under_load, verify
from tests.processes import Process, free_port
from tests.waiting import until

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


def ingest_url(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.settings.ingest_port}"


VICTIMS = (
    *("ingest-api", "ingest-api-2", "stream-to-store", "stream-to-lake"),
    *("kafka", "postgres", "clickhouse", "namenode", "datanode"),
)


def test_every_program_killed_in_turn_under_load(stack: Stack, seed: int) -> None:
    chance = random.Random(f"all {seed}")
    accepted, killed = Accepted(stack), dict[str, int]()
    with under_load(ingest_url(stack), seconds=30) as reports:
        for victim in chance.sample(VICTIMS, len(VICTIMS)):
            time.sleep(chance.uniform(1.0, 4.0))  # the seed chooses the moment of the crash
            killed[victim] = kill(stack, victim, set())
    stack.up()
    states = stack.states()
    assert [victim for victim in VICTIMS if states[victim].pid in {0, killed[victim]}] == []
    accepted.check(reports)


@pytest.mark.long
@pytest.mark.parametrize("victim", VICTIMS)
def test_kill_nine_under_load(stack: Stack, victim: str, seed: int) -> None:
    chance = random.Random(f"{victim} {seed}")
    accepted, killed = Accepted(stack), set[int]()
    with under_load(ingest_url(stack), seconds=12) as reports:
        for _ in range(2):
            time.sleep(chance.uniform(1.0, 4.0))
            killed.add(kill(stack, victim, killed))
    stack.up()
    assert stack.states()[victim].pid not in {0, *killed}
    accepted.check(reports)


def kill(stack: Stack, name: str, killed: Set[int]) -> int:
    """Send SIGKILL to a program once it runs with a process id that is not in `killed`; return the process id."""
    pid = await_process(stack, name, killed)
    os.kill(pid, signal.SIGKILL)
    return pid


def await_process(stack: Stack, name: str, killed: Set[int]) -> int:
    """Return the process id of a program once the supervisor has started the program again."""

    def pid() -> int:
        return stack.states()[name].pid

    until(lambda: pid() not in {0, *killed}, about=lambda: f"{name} was not started again: {stack.states()[name]}")
    return pid()


def test_the_lake_changes_hands_and_its_embedded_writer_is_killed_under_load(stack: Stack, seed: int) -> None:
    with under_load(ingest_url(stack), seconds=1):
        pass
    accepted, chance = Accepted(stack), random.Random(f"embedded {seed}")
    port = free_port()
    environment = stack.settings.urls() | {"LOGPIPE_STREAM_TO_STORE_PORT": str(port)}
    stack.supervisor.stop("stream-to-lake")
    release_the_lake(environment)
    with Process("stream-to-store --store lake", environment, port) as embedded:
        with under_load(ingest_url(stack), seconds=12) as reports:
            for _ in range(2):
                time.sleep(chance.uniform(1.0, 4.0))
                embedded.kill()
                embedded.start()
        accepted.check(reports)
    release_the_lake(environment)
    accepted = Accepted(stack)
    with under_load(ingest_url(stack), seconds=1) as reports:
        stack.up()
    accepted.check(reports)


def release_the_lake(environment: dict[str, str]) -> None:
    for dataset in datasets.all_datasets():
        command = [sys.executable, "-m", "services", "stream-to-lake", "--resume", dataset.name]
        subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)


@pytest.mark.long
@pytest.mark.parametrize("component", ["kafka", "postgres", "clickhouse"])
def test_a_component_unreachable_for_a_minute(stack: Stack, component: str) -> None:
    accepted = Accepted(stack)
    with under_load(ingest_url(stack), seconds=75) as reports:
        time.sleep(5)
        stack.supervisor.stop(component)
        time.sleep(60)
        stack.supervisor.start(component)
    accepted.check(reports)


def test_the_slot_of_a_stopped_process_is_adopted_and_it_may_wake_up_again(stack: Stack) -> None:
    port = free_port()
    environment = stack.settings.urls() | {"LOGPIPE_INGEST_PORT": str(port)}
    accepted, others = Accepted(stack), set(owners(stack).values())
    with Process("ingest-api", environment, port) as sleeper:
        broker = stack.states()["kafka"].pid
        os.kill(broker, signal.SIGSTOP)  # so that the rows that the sleeper accepts stay unpublished
        try:
            with under_load(sleeper.url, seconds=2) as reports:
                pass
            sleeper.signal(signal.SIGSTOP)
            left = {slot: owner for slot, owner in owners(stack).items() if owner not in others}
            assert left
        finally:
            os.kill(broker, signal.SIGCONT)
        try:
            await_adoption(stack, left)
            accepted.check(reports)  # every store has the rows of the sleeper while it is stopped
        finally:
            sleeper.signal(signal.SIGCONT)
        again = Accepted(stack)
        with under_load(sleeper.url, seconds=3) as reports:
            pass
        again.check(reports)


def owners(stack: Stack) -> dict[int, UUID]:
    """Return slot -> the ingest process that leases it, as the ledger says."""
    with psycopg.connect(stack.settings.urls()["LOGPIPE_POSTGRES_URL"]) as connection:
        return dict(connection.execute("SELECT slot, owner FROM slots").fetchall())


def await_adoption(stack: Stack, left: Mapping[int, UUID]) -> None:
    """Return once other processes lease all slots of `left`."""
    until(lambda: not left.items() & owners(stack).items(), about=lambda: "no process adopted the slot")


def test_an_idle_stack_verifies(stack: Stack) -> None:
    verify(stack)
