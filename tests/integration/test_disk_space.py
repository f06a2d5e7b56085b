"""The free space of the disk of a PostgreSQL elsewhere: the process that tells it, and an ingest API that asks it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.acceptance import remote_disk
from services.acceptance.disk import DiskFloor
from services.acceptance.remote_disk import RemoteDisk
from services.core.errors import Backpressure
from tests.processes import Process, free_port
from tests.waiting import until

TOKEN = "a-token"
TOO_MUCH = 1 << 60
LOG = {"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "s", "message": "m"}


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    port = free_port()
    environment = {"LOGPIPE_DISK_SPACE_PORT": str(port), "LOGPIPE_TOKEN": TOKEN}
    with Process(f"disk-space --folder {tmp_path}", environment, port) as started:
        yield started


@pytest.fixture
def disk(process: Process) -> Iterator[RemoteDisk]:
    asking = RemoteDisk(process.url, TOKEN)
    asking.worker.start()
    yield asking
    asking.worker.stop(10)


def test_the_process_tells_the_space_of_the_folder(process: Process, tmp_path: Path) -> None:
    assert httpx.get(f"{process.url}/disk").status_code == 401
    told = httpx.get(f"{process.url}/disk", headers={"authorization": f"Bearer {TOKEN}"}).json()
    usage = shutil.disk_usage(tmp_path)
    assert told["total"] == usage.total
    assert abs(told["free"] - usage.free) < 1 << 30  # other programs write meanwhile
    families = text_string_to_metric_families(httpx.get(f"{process.url}/metrics").text)
    samples = {sample.name: sample for family in families for sample in family.samples}
    measured = samples["logpipe_disk_space_total_bytes"]
    assert (measured.value, measured.labels) == (usage.total, {"folder": str(tmp_path)})
    tmp_path.rmdir()
    assert "No such file" in httpx.get(f"{process.url}/readyz").json()["degraded"]["folder"]
    assert httpx.get(f"{process.url}/disk", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 503


def test_a_process_that_is_unreachable_stops_nothing_for_ever(
    process: Process, disk: RemoteDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_disk, "_POLL_SECONDS", 0.05)
    floor = DiskFloor(disk, TOO_MUCH)
    until(disk.free)
    with pytest.raises(Backpressure, match=f"bytes free at {process.url}, the floor is"):
        floor.check()
    process.stop()
    until(disk.worker.health)
    with pytest.raises(Backpressure):
        floor.check()  # the last figure counts for a while
    assert disk.health() is None
    monkeypatch.setattr(remote_disk, "_KEPT_SECONDS", 0.2)
    until(lambda: disk.free() is None)
    floor.check()
    assert "rows are accepted without a floor" in (disk.health() or "")
    process.start()
    until(disk.free)
    assert disk.health() is None
    with pytest.raises(Backpressure):
        floor.check()


def test_an_ingest_api_refuses_rows_by_the_disk_of_another_process(own_postgres_url: str, process: Process) -> None:
    port = free_port()
    environment = {
        "LOGPIPE_POSTGRES_URL": own_postgres_url,
        "LOGPIPE_KAFKA_URL": f"127.0.0.1:{free_port()}",
        "LOGPIPE_INGEST_PORT": str(port),
        "LOGPIPE_INGEST_DISK_FLOOR": str(TOO_MUCH),
        "LOGPIPE_DISK_SPACE_URL": process.url,
        "LOGPIPE_TOKEN": TOKEN,
    }
    ingest = Process("ingest-api", environment, port)

    def post() -> httpx.Response:
        headers = {"authorization": f"Bearer {TOKEN}"}
        return httpx.post(f"{ingest.url}/api/collect/log", json=LOG, headers=headers, timeout=30)

    ingest.launch()
    try:
        until(lambda: _status(ingest) == 503)
        refused = post()
        assert refused.status_code == 503
        assert process.url in refused.text
    finally:
        ingest.stop()


def _status(process: Process) -> int:
    try:
        reply = httpx.get(f"{process.url}/readyz", timeout=5)
    except httpx.HTTPError:
        return 0
    return reply.status_code if "bytes free" in reply.text else 0
