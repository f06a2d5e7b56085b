"""Which batch ids are settled: each is the id of a committed batch, or of a batch that will never be committed.

Batch ids are drawn from one sequence by transactions that end in any order, and some of them roll back. An id that is
missing among higher ones may still appear, as long as the transaction that drew it is open. PostgreSQL tells which
transactions those are: each holds a lock on the sequence from its first draw to its end. Transactions of other
programs, however old, have no influence.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from services.ledger import reading
from services.ledger.reading import OpenTransaction
from services.postgres.connection import Connection

_PAGE = 10_000  # batch ids read at once


@dataclass(slots=True)
class Settled:
    """Every batch id up to `end` is settled. The methods do no I/O: `update_settled` reads the ids and transactions."""

    end: int = 0
    _highest: int = 0  # the highest committed id that was seen above a missing one
    _suspects: frozenset[str] | None = None  # open transactions that may have drawn one of the missing ids

    def add(self, ids: Sequence[int]) -> bool:
        """Add the first committed ids above `end`, in order. Return whether an id below the last of them is missing."""
        for batch_id in ids:
            if batch_id != self.end + 1:
                break
            self.end = batch_id
        if self.end >= self._highest:
            self._suspects = None
        if self._suspects is None and ids and ids[-1] > self.end:
            self._highest = ids[-1]
        return bool(ids) and ids[-1] > self.end

    def suspects(self, open_transactions: Collection[str]) -> frozenset[str]:
        """Return the transactions that may have drawn a missing id. `open_transactions` were read after `add`."""
        if self._suspects is None:
            self._suspects = frozenset(open_transactions)
        self._suspects = self._suspects.intersection(open_transactions)
        return self._suspects

    def settle(self, ids: Sequence[int], complete: bool) -> None:
        """Settle the missing ids. Called when no suspect is open any more.

        `ids`: the first committed ids above `end`, read after the last suspect had ended, so that an id missing among
        them is dead. `complete`: these are all ids above `end`.
        """
        last = ids[-1] if ids else 0
        self.end = max(self.end, self._highest if complete else min(self._highest, last))
        self._suspects = None
        self.add([batch_id for batch_id in ids if batch_id > self.end])


@dataclass(slots=True)
class Blockers:
    """The open transactions that have kept ids from being settled since the monotonic time `since`, if any."""

    transactions: Sequence[OpenTransaction] = field(default_factory=tuple)
    since: float | None = None


def update_settled(connection: Connection, settled: Settled, before: Blockers) -> Blockers:
    """Bring `settled` up to date, and return what blocks it. `before` is the last result. Raises StoreDown."""
    while True:
        ids = reading.batch_ids(connection, settled.end, _PAGE)
        if not settled.add(ids):
            if len(ids) < _PAGE:
                return Blockers()
            continue
        by_name = {each.transaction: each for each in reading.open_transactions(connection)}
        if suspects := settled.suspects(by_name.keys()):
            since = time.monotonic() if before.since is None else before.since
            return Blockers([by_name[name] for name in sorted(suspects)], since)
        ids = reading.batch_ids(connection, settled.end, _PAGE)
        settled.settle(ids, complete=len(ids) < _PAGE)
