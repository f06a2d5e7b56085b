"""The floor of free space below which the ingest API refuses rows."""

from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from services.acceptance import disk as module
from services.acceptance.disk import DiskFloor, LocalDisk
from services.core.errors import Backpressure

FLOOR = 1000


class Disk:
    """A disk and a clock that the test sets. `looks` counts the calls that ask for the free space."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.now, self.looks = FLOOR, 50.0, 0
        monkeypatch.setattr(module, "shutil", SimpleNamespace(disk_usage=self._usage))
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def _usage(self, path: str) -> SimpleNamespace:
        assert path == "/data"
        self.looks += 1
        return SimpleNamespace(free=self.free)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_rows_are_refused_below_the_floor_until_there_is_room_again(disk: Disk) -> None:
    floor = DiskFloor(LocalDisk("/data"), FLOOR)
    floor.check()
    disk.free, disk.now = FLOOR - 1, disk.now + 1
    with pytest.raises(Backpressure, match=f"{FLOOR - 1} bytes free at /data, the floor is {FLOOR}") as refused:
        floor.check()
    assert refused.value.retry_after == 30
    assert floor.health()
    disk.free, disk.now = FLOOR, disk.now + 1
    floor.check()
    assert floor.health() is None


def test_the_metrics_have_the_free_space_and_the_floor(disk: Disk) -> None:
    disk.free = 5 * FLOOR
    DiskFloor(LocalDisk("/data"), FLOOR).check()
    assert REGISTRY.get_sample_value("logpipe_ingest_disk_free_bytes") == 5 * FLOOR
    assert REGISTRY.get_sample_value("logpipe_ingest_disk_floor_bytes") == FLOOR


def test_the_disk_is_looked_at_once_a_second(disk: Disk) -> None:
    floor = DiskFloor(LocalDisk("/data"), FLOOR)
    for _ in range(100):
        floor.check()
    assert disk.looks == 1
    disk.now += 0.99
    floor.check()
    assert disk.looks == 1
    disk.now += 0.02
    floor.check()
    assert disk.looks == 2
