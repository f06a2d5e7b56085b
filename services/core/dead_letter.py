"""The Kafka message of a dead letter: a row or a message that a store will never take. Only this module spells it.

The key is `<store>:<topic>:<partition>:<offset>`. The value is one JSON object: the fields of `Record`, and `reason`,
`value` and `value_bytes` for an operator. A crash between the letter and the mark in the ledger sends a letter again,
so (store, topic, partition, offset, line) identifies the row that a letter is about.

Stream-to-store and replay encode letters (`streams.dead_letters`); the ledger's index decodes them. Both functions are
pure. Spark keeps its refused rows in a table of the lake instead (`spark_jobs/schema.py`).
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from services.core.dataset import Dataset
from services.core.errors import Malformed
from services.core.lines import UNDECODABLE

MAX_LETTER_BYTES = 900_000
"""Size of a letter, below what the producer and the topic take (1,000,000 bytes); more of a message is cut."""

MAX_REASON_CHARACTERS = 1000
"""Length of a reason; more of it is cut."""

NO_PLACE = -1
"""The partition and the offset of a row that was read from PostgreSQL."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row, or a whole message; then `line` and `id` are None.

    `line` is the row's number in its message, from 0. A row that was read from PostgreSQL has no message: `partition`
    and `offset` are NO_PLACE, and `line` is its number in the batch. `rows` is the number of rows that are lost to the
    store. A letter has the beginning of a long `reason` and of a long `value`; the whole message is in its topic at
    `offset`.
    """

    partition: int
    offset: int
    line: int | None
    batch_id: int | None
    id: int | None
    rows: int
    reason: str
    value: bytes


# The types are bounded by what PostgreSQL's index of the letters can hold, so that a foreign message cannot stop it.
_Name = Annotated[str, msgspec.Meta(max_length=249, pattern="^[^\\x00]*$")]
_Int = Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)]
_BigInt = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]


class Record(msgspec.Struct, frozen=True):
    """What a letter says about which rows: one row, or without a `line` the `rows` of one message."""

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
    """Everything that a letter says. `value_bytes` is the size of the value before it was cut."""

    reason: str
    value_bytes: int
    value: str


_decoder = msgspec.json.Decoder(Record)


def encode(store: str, dataset: Dataset, letter: DeadLetter) -> tuple[bytes, bytes]:
    """The key and the value of a letter about a row of the dataset that `store` refuses."""
    key = f"{store}:{dataset.topic}:{letter.partition}:{letter.offset}".encode()
    text = letter.value.decode(errors="backslashreplace")
    while len(value := msgspec.json.encode(_value(store, dataset, letter, text))) > MAX_LETTER_BYTES:
        # A character takes up to six bytes. Where the characters that remain take more than the average, this repeats.
        text = text[: len(text) * MAX_LETTER_BYTES // len(value)]
    return key, value


def decode(value: bytes) -> Record:
    """Raises Malformed for a value that is no letter."""
    try:
        return _decoder.decode(value)
    except UNDECODABLE as error:
        raise Malformed(str(error)) from error


def _value(store: str, dataset: Dataset, letter: DeadLetter, text: str) -> _Value:
    return _Value(
        store,
        dataset.name,
        dataset.topic,
        letter.partition,
        letter.offset,
        letter.line,
        letter.batch_id,
        letter.id,
        letter.rows,
        reason=letter.reason[:MAX_REASON_CHARACTERS],
        value_bytes=len(letter.value),
        value=text,
    )
