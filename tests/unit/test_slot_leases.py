"""The leases of an ingest process, without PostgreSQL: what its two threads see of each other's changes."""

from threading import Event
from typing import Any
from unittest.mock import MagicMock, Mock
from uuid import UUID, uuid4

import pytest

from services.acceptance import slot_leases
from services.acceptance.slot_leases import SlotLeases
from services.acceptance.slot_owner import SlotOwner
from services.core.errors import StoreDown
from services.ledger import schema
from services.ledger.slots import Lease
from tests.waiting import until

CONNECTION = MagicMock()


class Slots:
    """The table of slots with one owner. `acquired`: the leases that were given out for new batches, in order."""

    LEASE_SECONDS, RENEW_SECONDS = 10, 0.01

    def __init__(self) -> None:
        self.acquired: list[Lease] = []
        self.held: set[Lease] = set()
        self.renewed = Event()
        self.stuck: dict[Lease, str] = {}
        self.is_down = False

    def session_name(self, owner: UUID) -> str:
        return str(owner)

    def acquire(self, connection: Any, owner: UUID) -> Lease:
        lease = Lease(len(self.acquired), 1)
        self.acquired.append(lease)
        self.held.add(lease)
        return lease

    def adopt_orphan(self, connection: Any, owner: UUID) -> None:
        return None

    def renew(self, connection: Any, owner: UUID) -> set[Lease]:
        self.renewed.set()
        return set(self.held)

    def release(self, connection: Any, lease: Lease) -> None:
        self.held.discard(lease)

    def mark_stuck(self, connection: Any, lease: Lease, reason: str) -> None:
        if self.is_down:
            raise StoreDown("postgres", "stopped by the test")
        self.stuck[lease] = reason


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Slots:
    made = Slots()
    monkeypatch.setattr(slot_leases, "slots", made)
    monkeypatch.setattr(slot_leases, "connect", lambda url, name: MagicMock(closed=False))
    monkeypatch.setattr(schema, "require", lambda connection: None)
    return made


def has_slot(leases: SlotLeases) -> bool:
    try:
        return leases.slot() >= 0
    except StoreDown:
        return False


def test_no_slot_is_leased_after_all_were_released_at_the_stop(slots: Slots) -> None:
    owner = SlotOwner("url", uuid4(), lambda: None, lambda lease: Mock(step=Mock(return_value=0)))
    leases = owner._leases
    owner.start()
    until(lambda: has_slot(leases))
    release_all, renewals = leases.release_all, list[bool]()

    def release_all_and_await_renewals(connection: Any) -> None:
        release_all(connection)
        for _ in range(3):  # turns of the thread that renews, which used to lease another slot here
            slots.renewed.clear()
            renewals.append(slots.renewed.wait(10))

    leases.release_all = release_all_and_await_renewals  # type: ignore[method-assign]
    owner.stop(10)
    assert renewals == [True] * 3
    assert slots.acquired == [Lease(0, 1)]
    assert not slots.held


def test_a_stuck_slot_is_replaced_until_too_many_are_stuck(slots: Slots) -> None:
    leases = SlotLeases("url", uuid4())
    leases._turn()
    for number in range(2):
        leases.mark_stuck(CONNECTION, Lease(number, 1), "rows are missing")
        assert leases.slot() == number + 1
        assert leases.publishable() == {Lease(number + 1, 1)}
    leases.mark_stuck(CONNECTION, Lease(2, 1), "rows are missing")
    with pytest.raises(StoreDown, match=r"slots \[0, 1, 2\] cannot be published"):
        leases.slot()
    slots.held.discard(Lease(0, 1))  # resolved
    leases._turn()
    assert leases.slot() == 3


def test_a_mark_that_postgres_did_not_get_is_written_at_the_next_renewal(slots: Slots) -> None:
    leases = SlotLeases("url", uuid4())
    leases._turn()
    slots.is_down = True
    with pytest.raises(StoreDown):
        leases.mark_stuck(CONNECTION, Lease(0, 1), "rows are missing")
    assert leases.publishable() == set()
    slots.is_down = False
    leases._turn()
    assert slots.stuck == {Lease(0, 1): "rows are missing"}
    assert leases.slot() == 1


def test_what_a_reader_has_taken_does_not_change_while_the_other_thread_renews(slots: Slots) -> None:
    leases = SlotLeases("url", uuid4())
    leases._turn()
    leases.mark_stuck(CONNECTION, Lease(0, 1), "rows are missing")
    leases.mark_stuck(CONNECTION, Lease(1, 1), "rows are missing")
    reading = iter(leases.stuck().items())
    assert next(reading) == (Lease(0, 1), "rows are missing")
    slots.held.clear()
    leases.renew(CONNECTION)
    assert list(reading) == [(Lease(1, 1), "rows are missing")]
    assert not leases.stuck()
    assert not leases.held()


def test_a_reader_does_not_wait_for_a_change_that_hangs(slots: Slots) -> None:
    leases = SlotLeases("url", uuid4())
    leases._turn()
    with leases._lock:  # as while PostgreSQL does not reply
        assert leases.slot() == 0
        assert leases.health() is None
        assert leases.publishable() == {Lease(0, 1)}
