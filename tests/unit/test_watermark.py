"""Batch ids count as settled only when no batch can appear among them, and all ids do in the end.

The model plays PostgreSQL: transactions draw batch ids, then end in any order, some by rolling back, also between the
reads of one look.
"""

from collections.abc import Iterator
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from services.ledger import settled as room
from services.ledger.reading import OpenTransaction
from services.ledger.settled import Blockers, Settled, update_settled

Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "draw", "draw", "commit", "commit", "rollback"]), st.integers(0, 1000)),
    max_size=80,
)


class Server:
    """Transactions and batch ids, as far as the ledger's readers can tell. Plays one step before each read."""

    def __init__(self, steps: Iterator[Step]) -> None:
        self._steps = steps
        self._names = 0
        self.next_batch = 1
        self.open: dict[str, list[int]] = {}  # transaction -> the batch ids that it has drawn
        self.committed: set[int] = set()

    def play(self) -> bool:
        step, pick = next(self._steps, ("none", 0))
        names = sorted(self.open)
        if step == "begin":
            self._names += 1
            self.open[f"{self._names % 3}/{self._names}"] = []
        elif names and step == "draw":
            self.open[names[pick % len(names)]].append(self.next_batch)
            self.next_batch += 1
        elif names and step in ("commit", "rollback"):
            drawn = self.open.pop(names[pick % len(names)])
            self.committed.update(drawn if step == "commit" else ())
        return step != "none"

    def in_flight(self) -> set[int]:
        return {batch_id for drawn in self.open.values() for batch_id in drawn}

    def batch_ids(self, connection: object, after: int, limit: int) -> list[int]:
        self.play()
        return sorted(b for b in self.committed if b > after)[:limit]

    def open_transactions(self, connection: object) -> list[OpenTransaction]:
        self.play()
        return [OpenTransaction(name, 1, "", 0.0) for name, drawn in self.open.items() if drawn]


@given(STEPS, st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=500)
def test_settles_only_what_has_ended_and_all_in_the_end(steps: list[Step], page: int, between: int) -> None:
    server, state, seen = Server(iter(steps)), Settled(), Blockers()
    with patch.object(room, "reading", server), patch.object(room, "_PAGE", page):
        playing = True
        while playing:
            for _ in range(between):
                server.play()
            before = state.end
            seen = update_settled(None, state, seen)  # type: ignore[arg-type]
            assert state.end >= before
            assert not any(batch_id <= state.end for batch_id in server.in_flight())
            playing = server.play()
        for drawn in server.open.values():
            server.committed.update(drawn)
        server.open.clear()
        seen = update_settled(None, state, seen)  # type: ignore[arg-type]
    assert seen == Blockers()
    assert state.end == max(server.committed, default=0)


def test_a_transaction_that_drew_no_missing_id_holds_nothing() -> None:
    """A writer that began to draw after the gap was seen keeps later ids from being settled, not earlier ones."""
    state = Settled()
    assert state.add([1, 3])
    assert state.suspects({"a"}) == {"a"}
    assert state.add([3])
    assert state.suspects({"b"}) == frozenset()
    state.settle([3], complete=True)
    assert state.end == 3


def test_who_holds_the_ids_is_told_until_they_are_settled() -> None:
    state = Settled()
    state.add([1, 3])
    assert state.suspects({"a", "b"}) == {"a", "b"}
    state.add([3, 4])
    assert state.suspects({"b", "c"}) == {"b"}
    assert state.end == 1
