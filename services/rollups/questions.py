"""Which questions a rollup can answer, and from what: its counts where they are whole, else the rows.

A rollup knows the minute of a row, its groupings, and up to which batch it has counted. So an answer as of a later
batch, between two times, is the sum of
    the rollup      batches below `until`, whole minutes only;
    the newest      rows of the batches from `until` on;
    the edges       rows of the earlier batches in the minutes that the times cut through.
"""

from dataclasses import dataclass
from typing import LiteralString

from services.core.dataset import Dataset
from services.core.ids import end_id, first_id
from services.core.queries import MINUTE, AggregateQuestion, ListQuestion, Question


def name(dataset: Dataset) -> str:
    """Other groupings make another rollup, so that processes of two versions can run side by side."""
    return f"{dataset.name}_by_{'_'.join(dataset.groupings)}"


@dataclass(frozen=True, slots=True)
class Times:
    """start <= time < end, in microseconds; None: no bound."""

    start: int | None
    end: int | None


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows with first_id <= id < end_id at these times."""

    first_id: int
    end_id: int
    times: Times


@dataclass(frozen=True, slots=True)
class Plan:
    """The counts of all batches below `until` in these whole minutes, and of these rows; none overlap."""

    until: int
    minutes: Times
    rows: tuple[Rows, ...]


def keys(question: Question) -> list[LiteralString]:
    """Names for what the question groups by, in the statement that answers it; none when it asks for one count."""
    if not isinstance(question, AggregateQuestion):
        return []
    return [*(["counted_time"] if question.bucket else []), *(["counted_key"] if question.group_by else [])]


def order(question: Question) -> list[LiteralString]:
    """What it orders by, `counted` being the count."""
    by_time = isinstance(question, AggregateQuestion) and question.bucket
    return keys(question) if by_time else ["counted DESC", *keys(question)]


def known(question: Question) -> bool:
    """Whether a rollup knows all that is asked for, and may be asked."""
    dataset, filters = question.dataset, question.filters
    columns = [column for column, _ in filters.equals]
    if isinstance(question, ListQuestion) and not question.count:
        return False
    if isinstance(question, AggregateQuestion):
        columns += filter(None, [question.group_by])
        if (question.bucket or MINUTE) % MINUTE:
            return False
    return not question.scan and not filters.text and set(dataset.groupings).issuperset(columns)


def plan(question: Question, until: int, as_of: int) -> Plan | None:
    """How to count what a question asks for, by a rollup of all batches below `until` <= `as_of` + 1.

    None when the rollup does not know what is asked for, or would have no part in the answer.
    """
    times = Times(question.filters.start, question.filters.end)
    start = None if times.start is None else -(-times.start // MINUTE) * MINUTE
    end = None if times.end is None else times.end // MINUTE * MINUTE
    if not known(question) or until == 0 or (start is not None and end is not None and start >= end):
        return None
    boundary = first_id(until)
    rows = [Rows(boundary, end_id(as_of), times)] if boundary < end_id(as_of) else []
    if start != times.start:
        rows.append(Rows(0, boundary, Times(times.start, start)))
    if end != times.end:
        rows.append(Rows(0, boundary, Times(end, times.end)))
    return Plan(until, Times(start, end), tuple(rows))
