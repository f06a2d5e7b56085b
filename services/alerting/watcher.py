"""Counts the errors of each second, and judges the seconds that are complete. `streams.loop` reads the topic.

A row counts in the second in which it was accepted. A second is complete once every batch accepted in it has been read:
the ledger says that all of them are in Kafka, and the topic was read to its end after that. Therefore an outage of
Kafka or of this process delays alerts, but it hides no alert and resolves none too early.

The present second is that of PostgreSQL's clock, which gave the batches their times. An offset counts in the topic with
the id that it was read with. If the topic has another id before the offset is stored, the offset is dropped.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from services.alerting.book import Book, Policy
from services.alerts import repository as alerts
from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import LogpipeError, StoreDown
from services.core.ports import Message
from services.ledger import reading, schema
from services.postgres.connection import Connection, connect
from services.runtime import metrics
from services.streams.loop import AfterFailure, TopicView

LOOK_SECONDS = 1.0  # between two looks at how far the pipeline is
GRACE_SECONDS = 2  # for a batch that has its time already and is not committed yet
HOLD_SECONDS = 60  # how long batches that are not in Kafka are waited for; after that they count when they come
MAX_NEW = 100_000  # counts in memory while catching up


class _Target(NamedTuple):
    """When the topic has been read up to `ends`, all seconds below `complete` are complete.

    `caught_up`: the moment of the monotonic clock at which `complete` was the present second.
    """

    complete: int
    ends: Mapping[int, int]
    caught_up: float


class Watcher:
    """The handler of the messages of errors (`streams.loop.Handler`), used by the loop's thread only.

    `prepare_topic` makes or checks the topic. After any failure everything in memory is dropped, and read again from
    the stored positions. `now` is the present second of PostgreSQL's clock.
    """

    def __init__(
        self,
        dataset: Dataset,
        policy: Policy,
        topic: TopicView,
        postgres_url: str,
        prepare_topic: Callable[[], None],
        now: Callable[[Connection], float] = alerts.now,
    ) -> None:
        self._dataset = dataset
        self._policy = policy
        self._topic = topic
        self._url = postgres_url
        self._prepare_topic = prepare_topic
        self._now = now
        self._connection: Connection | None = None
        self._book: Book | None = None  # None: to be loaded
        self._read_up_to: Mapping[int, int] = {}
        self._target: _Target | None = None
        self._next_look = 0.0
        self._caught_up = time.monotonic()  # when the last complete second was the present one
        metrics.gauge(metric_names.ALERTS_BEHIND_SECONDS).set_function(lambda: time.monotonic() - self._caught_up)

    def prepare(self) -> None:
        """Make or check the topic, and check the tables. Raises StoreDown, NeedsOperator."""
        self._prepare_topic()
        schema.require(self._connected())
        alerts.require(self._connected())

    def load(self, assigned: Sequence[int]) -> Mapping[int, int]:
        """Return where to read on. Raises StoreDown."""
        topic_id = self._topic.topic_id()  # before the bounds, so that those of a newer topic are noticed
        bounds = self._topic.bounds()
        kept = {partition: bounds[partition] for partition in assigned if partition in bounds}
        connection = self._connected()
        self._book = Book(connection, self._policy, topic_id, kept, int(self._now(connection)))
        self._read_up_to = {partition: at.next_offset for partition, at in self._book.positions.items()}
        return self._read_up_to

    def receive(self, messages: Sequence[Message], read_up_to: Mapping[int, int]) -> None:
        assert self._book is not None
        for message in messages:
            self._book.count(message)
        self._read_up_to = read_up_to

    def flush(self) -> bool:
        """Judge and store what is complete, once all of it is read. Raises Fenced, StoreDown."""
        assert self._book is not None
        self._judge(self._book)
        return True

    def drop(self) -> None:
        self._book = self._target = None
        if self._connection:
            self._connection.close()
            self._connection = None

    def after_failure(self, error: LogpipeError) -> AfterFailure:
        """Load again after every error, also one that needs an operator: a retry loses nothing."""
        return AfterFailure.RELOAD

    def close(self) -> None:
        self.drop()

    def _judge(self, book: Book) -> None:
        if self._target is None and time.monotonic() >= self._next_look:
            self._target = self._look(book)
            self._next_look = time.monotonic() + LOOK_SECONDS
        if self._target and all(self._read_up_to[partition] >= end for partition, end in self._target.ends.items()):
            self._commit(book, self._target.complete)
            self._caught_up, self._target = self._target.caught_up, None
        elif book.size >= MAX_NEW:
            self._commit(book, 0)

    def _commit(self, book: Book, complete: int) -> None:
        if self._topic.topic_id() != book.topic_id:
            raise StoreDown(
                "kafka", "the topic of errors was deleted and created again: it is read again from its start"
            )
        book.commit(self._read_up_to, complete)

    def _look(self, book: Book) -> _Target:
        """Return the next target. The ledger is read before the ends, so that published batches lie before the ends."""
        now = int(self._now(self._connected()))
        if any(position.judged > now for position in book.positions.values()):
            raise StoreDown("postgres", "its clock went back: the seconds that were judged too early are judged again")
        complete = now - GRACE_SECONDS
        waiting = reading.oldest_unpublished(self._connected(), self._dataset.name)
        if waiting is not None:
            complete = min(complete, max(waiting // 1_000_000, now - HOLD_SECONDS))
        bounds = self._topic.bounds()
        if not book.positions.keys() <= bounds.keys():
            raise StoreDown("kafka", "the topic of errors has fewer partitions than before")
        ends = {partition: bounds[partition][1] for partition in book.positions}
        return _Target(complete, ends, time.monotonic() - (now - complete))

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._url)
        return self._connection
