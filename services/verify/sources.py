"""Compares what was read of foreign topics with what came of it: each line is a row or a dead letter.

The ledger counts the lines, the rows and the dead letters of a source in the transaction that accepts the rows. The
rows themselves are compared with every store as all rows of the dataset are.
"""

from collections.abc import Callable
from dataclasses import dataclass

from services.ledger.source_progress import SourceCounts


@dataclass(frozen=True, slots=True)
class SourceResult:
    """Lines of one foreign topic that were read into a dataset.

    `found`: the dead letters in the topic of dead letters; None where they were not compared, which `note` explains.
    """

    topic: str
    dataset: str
    lines: int
    rows: int
    dead_letters: int
    found: int | None
    note: str = ""

    @property
    def ok(self) -> bool:
        """More dead letters than were counted are no difference: they may precede the offsets by a crash."""
        return self.lines == self.rows + self.dead_letters and (self.found is None or self.found >= self.dead_letters)


def reconcile(counts: SourceCounts, floor: int, look_up: Callable[[str, str], int]) -> SourceResult:
    """`floor`: of the dataset. `look_up` returns the dead-lettered lines of a topic and dataset. Raises StoreDown.

    The counts were read before `look_up` is called: a dead letter is sent before it is counted.
    """
    topic, dataset, lines, rows, dead_letters, is_resumed = counts
    note, found = "", None
    if is_resumed:
        note = "dead letters were not searched for: the topic was created again, or messages were left out (--resume)"
    elif floor:
        note = "dead letters were not searched for: retention has deleted old ones"
    else:
        found = look_up(topic, dataset)
    return SourceResult(topic, dataset, lines, rows, dead_letters, found, note)
