"""The watermark never claims what is not loaded, and reaches the end once everything is.

The model plays PostgreSQL: transactions draw an id, then a batch id, then end in any order, some by rolling back; its
snapshots follow the server's rules for xmin. The sink's offsets move at will.
"""

from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.ledger import Batch, Part
from services.ledger.reading import Snapshot
from services.ledger.watermark import Loaded, Settled


class Server:
    """Transactions, batch ids and snapshots, as far as the ledger's readers can tell."""

    def __init__(self) -> None:
        self.next_transaction = 1
        self.next_batch = 1
        self.running: dict[int, int | None] = {}  # transaction -> its batch id, once it has drawn one
        self.latest_ended = 0
        self.committed: set[int] = set()
        self.dead: set[int] = set()

    def begin(self) -> None:
        self.running[self.new_transaction_id()] = None

    def draw(self, transaction: int) -> None:
        if self.running[transaction] is None:
            self.running[transaction] = self.next_batch
            self.next_batch += 1

    def end(self, transaction: int, commits: bool) -> None:
        batch_id = self.running.pop(transaction)
        self.latest_ended = max(self.latest_ended, transaction)
        if batch_id is not None:
            (self.committed if commits else self.dead).add(batch_id)

    def snapshot(self, after: int, limit: int) -> Snapshot:
        xmax = self.latest_ended + 1
        ids = sorted(b for b in self.committed if b > after)[:limit]
        return Snapshot(ids, min((t for t in self.running if t < xmax), default=xmax))

    def new_transaction_id(self) -> int:
        self.next_transaction += 1
        return self.next_transaction - 1


def observe(server: Server, settled: Settled, limit: int) -> None:
    if settled.observe(*server.snapshot(settled.end, limit)):
        transaction = server.new_transaction_id()
        settled.bound(transaction)
        server.latest_ended = max(server.latest_ended, transaction)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "draw", "draw", "commit", "commit", "rollback", "observe"]), st.integers(0, 1000)
    ),
    max_size=80,
)


@given(STEPS, st.integers(1, 5))
@settings(max_examples=500)
def test_settles_only_ended_batches_and_all_in_the_end(steps: list[tuple[str, int]], limit: int) -> None:
    server, settled = Server(), Settled()
    for step, pick in steps:
        running = sorted(server.running)
        if step == "begin":
            server.begin()
        elif step == "observe":
            before = settled.end
            observe(server, settled, limit)
            assert settled.end >= before
        elif running and step == "draw":
            server.draw(running[pick % len(running)])
        elif running:
            server.end(running[pick % len(running)], commits=step == "commit")
        in_flight = {b for b in server.running.values() if b is not None}
        assert not any(b <= settled.end for b in in_flight)
    for transaction in sorted(server.running):
        server.end(transaction, commits=True)
    for _ in range(2 * len(server.committed) + 4):
        observe(server, settled, limit)
    assert settled.end == max(server.committed, default=0)


def test_a_missing_id_whose_transaction_is_beyond_the_highest_ended_one_is_not_dead() -> None:
    """The case that a bound of `pg_snapshot_xmax` gets wrong."""
    server, settled = Server(), Settled()
    server.begin()
    server.begin()  # the later transaction …
    server.draw(2)  # … draws the earlier batch id
    server.draw(1)
    server.end(1, commits=True)
    for _ in range(5):
        observe(server, settled, 10)
    assert settled.end == 0
    server.end(2, commits=True)
    observe(server, settled, 10)
    assert settled.end == 2


def batch(batch_id: int, *parts: tuple[int, int], published: bool = True) -> Batch:
    return Batch(batch_id, 0, "logs", 1, 0, 0, tuple(Part(*p) for p in parts) if published else None)


PARTITIONS = 3


@given(
    st.lists(st.lists(st.integers(0, PARTITIONS - 1), max_size=3, unique=True), max_size=30),
    st.lists(st.tuples(st.integers(0, PARTITIONS - 1), st.integers(1, 4)), max_size=60),
    st.integers(1, 4),
)
def test_walks_to_the_first_batch_that_is_not_loaded(
    parts: list[list[int]], moves: list[tuple[int, int]], page: int
) -> None:
    offsets = [count(0, 2) for _ in range(PARTITIONS)]
    batches = [batch(i, *((p, next(offsets[p])) for p in used)) for i, used in enumerate(parts, 1)]
    loaded, confirmed = Loaded(), dict.fromkeys(range(PARTITIONS), 0)

    def walk() -> None:
        loaded.confirm(dict(confirmed))
        while pages := [b for b in batches if b.batch_id > loaded.end][:page]:
            if not loaded.walk(pages):
                break

    def is_loaded(b: Batch) -> bool:
        return all(p.offset < confirmed[p.partition] for p in b.parts or ())

    for partition, distance in moves:
        confirmed[partition] += distance
        walk()
        first_missing = next((b.batch_id for b in batches if not is_loaded(b)), len(batches) + 1)
        assert loaded.end == first_missing - 1
    confirmed.update(dict.fromkeys(confirmed, 10_000))
    walk()
    assert loaded.end == len(batches)


def test_an_unpublished_batch_is_waited_for() -> None:
    loaded = Loaded()
    loaded.confirm({0: 100})
    assert not loaded.walk([batch(1, (0, 5)), batch(2, published=False), batch(3, (0, 6))])
    assert loaded.end == 1
    assert loaded.walk([batch(2, (0, 7)), batch(3, (0, 6))])
    assert loaded.end == 3


def test_a_rebuilt_store_starts_again() -> None:
    loaded = Loaded()
    loaded.confirm({0: 100})
    loaded.walk([batch(1, (0, 5))])
    loaded.confirm({0: 3})
    assert loaded.end == 0
