"""Ten minutes of random kills and stops of every program under load, with each writer of the lake."""

from pathlib import Path

import pytest

from services.local.settings import LakeWriter, LocalSettings
from services.local.stack import Stack
from tests.e2e.chaos import Chaos
from tests.e2e.load import Accepted, under_load

SECONDS = 600.0
RATE = 15_000  # rows a second
CATCH_UP_SECONDS = 900.0  # Spark may not have stored a single row if it was killed again and again

pytestmark = [pytest.mark.heavy, pytest.mark.long, pytest.mark.timeout(2400)]


@pytest.mark.parametrize("writer", ["embedded", "spark"])
def test_nothing_is_lost_or_doubled(stack_folder: Path, writer: LakeWriter, seed: int) -> None:
    settings = LocalSettings.on_free_ports(stack_folder).model_copy(update={"lake_writer": writer})
    with Stack(settings) as stack:
        accepted = Accepted(stack)
        chaos = Chaos(stack, f"{writer} {seed}")
        with under_load(f"http://127.0.0.1:{settings.ingest_port}", SECONDS, RATE, request_rows=1000) as reports:
            chaos.harm(SECONDS)
            chaos.end()
        chaos.end()
        assert chaos.killed, "no program was killed"
        accepted.check(reports, CATCH_UP_SECONDS)
