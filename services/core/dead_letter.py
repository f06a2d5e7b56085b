"""The Kafka message of a dead letter: a row or a message that a store will never take. Only this module spells it.

The key is `<store>:<topic>:<partition>:<offset>`. The value is one JSON object: the fields of `Record`, and `reason`,
`value` and `value_bytes` for an operator. After a crash between the dead letter and the mark in the ledger, the dead
letter is sent again, so (store, topic, partition, offset, line) identifies the row that it is about.

Stream-to-store, replay and the Kafka source, for which `store` is SOURCE, encode dead letters
(`streams.dead_letters`); the ledger's index decodes them. Both functions are pure. Spark keeps its rejects in a table
of the lake instead (`spark_jobs/schema.py`).
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec

from services.core.dataset import Dataset
from services.core.errors import Malformed
from services.core.lines import UNDECODABLE

MAX_DEAD_LETTER_BYTES = 900_000
"""Size of a dead letter, below what the producer and the topic take (1,000,000 bytes); more of a message is cut."""

MAX_REASON_CHARACTERS = 1000
"""Length of a reason; more of it is cut."""

MOST_DEAD_LETTERS = 100
"""Dead letters of the single lines of one message. All further bad lines of the message share one dead letter."""

SOURCE = "kafka-source"
"""Stands for a store in a dead letter about a line of a foreign topic that is no row of the dataset."""

NO_PLACE = -1
"""The partition and the offset of a row that was read from PostgreSQL."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row, or a whole message, or the further bad lines of a message; then `line` and `id` are None.

    `line` is the row's number in its message, from 0. A row that was read from PostgreSQL has no message: `partition`
    and `offset` are NO_PLACE, and `line` is its number in the batch. `rows` is the number of rows that are lost to the
    store. A dead letter has the beginning of a long `reason` and of a long `value`. The whole message is in its topic
    at `offset`.
    """

    partition: int
    offset: int
    line: int | None
    batch_id: int | None
    id: int | None
    rows: int
    reason: str
    value: bytes


class LineDeadLetters:
    """Collects the dead letters of the bad lines of one message. Their memory is bounded, however many lines are bad.

    Each of the first MOST_DEAD_LETTERS lines has a dead letter of its own. The further lines share one dead letter,
    which has the number of these lines, and the first of them as an example.
    """

    def __init__(self, partition: int, offset: int, batch_id: int | None = None) -> None:
        self._place = (partition, offset)
        self._batch_id = batch_id
        self._single: list[DeadLetter] = []
        self._further = 0
        self._example = (0, b"", "")

    @property
    def needs_reason(self) -> bool:
        """Whether the reason of the next bad line becomes part of a dead letter."""
        return not self._further

    def add(self, number: int, line: bytes, reason: str, row_id: int | None = None) -> None:
        """Add the bad line `number`. `row_id` is the id of the row of the batch that the line stands for, if any."""
        if len(self._single) < MOST_DEAD_LETTERS:
            self._single.append(DeadLetter(*self._place, number, self._batch_id, row_id, 1, reason, line))
            return
        if not self._further:
            self._example = (number, line, reason)
        self._further += 1

    def dead_letters(self) -> list[DeadLetter]:
        if not self._further:
            return self._single
        number, line, reason = self._example
        text = f"{self._further} more lines of this message are no rows; the first of them is line {number}: {reason}"
        shared = DeadLetter(*self._place, None, self._batch_id, None, self._further, text, line)
        return [*self._single, shared]


class DeadLettered(NamedTuple):
    """`rows` rows of a batch: the row with the id `row_id`, or rows whose ids could not be read."""

    batch_id: int
    row_id: int | None
    rows: int


# The types are bounded by what PostgreSQL's index of the dead letters can hold, 2,704 bytes an entry: no message of
# another program can stop the index. Names of stores, datasets and topics have only the characters of Kafka's topics.
_Name = Annotated[str, msgspec.Meta(max_length=249, pattern=r"^[A-Za-z0-9._-]*\Z")]
_Int = Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)]
_BigInt = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]


class Record(msgspec.Struct, frozen=True):
    """What a dead letter says about which rows: one row, or without a `line` the `rows` of one message."""

    store: _Name
    dataset: _Name
    topic: _Name
    partition: _Int
    offset: _BigInt
    line: _Int | None = None
    batch_id: _BigInt | None = None
    id: _BigInt | None = None
    rows: _Int = 1


class _Value(Record, frozen=True, kw_only=True):
    """Everything that a dead letter says. `value_bytes` is the size of the value before it was cut."""

    reason: str
    value_bytes: int
    value: str


_decoder = msgspec.json.Decoder(Record)


def encode(store: str, dataset: Dataset, dead_letter: DeadLetter, topic: str = "") -> tuple[bytes, bytes]:
    """Return the key and the value of a dead letter about a row of the dataset that `store` refuses.

    `topic`: the topic of the message, where that is not the dataset's own.
    """
    topic = topic or dataset.topic
    key = f"{store}:{topic}:{dead_letter.partition}:{dead_letter.offset}".encode()
    text = dead_letter.value[:MAX_DEAD_LETTER_BYTES].decode(errors="backslashreplace")
    while len(value := msgspec.json.encode(_value(store, dataset, topic, dead_letter, text))) > MAX_DEAD_LETTER_BYTES:
        # A character takes up to six bytes. Where the characters that remain take more than the average, this repeats.
        text = text[: len(text) * MAX_DEAD_LETTER_BYTES // len(value)]
    return key, value


def decode(value: bytes) -> Record:
    """Decode the value of a dead letter. Raises Malformed for any other value."""
    try:
        return _decoder.decode(value)
    except UNDECODABLE as error:
        raise Malformed(str(error)) from error


def _value(store: str, dataset: Dataset, topic: str, dead_letter: DeadLetter, text: str) -> _Value:
    return _Value(
        store,
        dataset.name,
        topic,
        dead_letter.partition,
        dead_letter.offset,
        dead_letter.line,
        dead_letter.batch_id,
        dead_letter.id,
        dead_letter.rows,
        reason=dead_letter.reason[:MAX_REASON_CHARACTERS],
        value_bytes=len(dead_letter.value),
        value=text,
    )
