"""The loop that reads the topic of errors, and has those seconds judged of which it has seen everything.

A row counts in the second in which it was accepted. A second is complete once every batch accepted in it has been read:
the ledger says that all of them are in Kafka, and the topic was read to its end after that. So an outage of Kafka or of
this process delays alerts; it neither hides one nor resolves one too early.

The present second is that of PostgreSQL's clock, which gave the batches their times. An offset counts in the topic with
the id that it was read with, and is thrown away when the topic has another id before it is written down.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from threading import Event
from typing import NamedTuple

from services.alerting.book import Book, Policy
from services.alerts import repository as alerts
from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import LogpipeError, StoreDown
from services.core.ports import GroupReader
from services.ledger import reading, schema
from services.postgres.connection import Connection, connect
from services.runtime import logs, metrics

POLL_SECONDS = 0.2
LOOK_SECONDS = 1.0  # between two looks at how far the pipeline is
GRACE_SECONDS = 2  # for a batch that has its time already and is not committed yet
HOLD_SECONDS = 60  # how long batches that are not in Kafka are waited for; after that they count when they come
MAX_NEW = 100_000  # counts in memory while catching up
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0

_log = logs.get("alerting")


class _Target(NamedTuple):
    """When the topic has been read up to `ends`, all seconds below `complete` are complete.

    `caught_up`: the moment of the monotonic clock at which `complete` was the present second.
    """

    complete: int
    ends: Mapping[int, int]
    caught_up: float


class Watcher:
    """`prepare` is called when reading begins, until it succeeds.

    `run` belongs to one thread; `problem` may be called from others.
    """

    def __init__(
        self,
        dataset: Dataset,
        policy: Policy,
        reader: GroupReader,
        postgres_url: str,
        prepare: Callable[[], None],
        now: Callable[[Connection], float] = alerts.now,
    ) -> None:
        self._dataset = dataset
        self._policy = policy
        self._reader = reader
        self._url = postgres_url
        self._prepare = prepare
        self._now = now
        self._connection: Connection | None = None
        self._prepared = False
        self._given: Sequence[int] | None = None  # by the group
        self._book: Book | None = None  # None: to be loaded
        self._target: _Target | None = None
        self._next_look = 0.0
        self._wait_until = 0.0
        self._pause = FIRST_PAUSE
        self._problem: str | None = "starting"
        self._caught_up = time.monotonic()  # when the last complete second was the present one
        metrics.gauge(metric_names.ALERTS_BEHIND_SECONDS).set_function(lambda: time.monotonic() - self._caught_up)

    def run(self, stop: Event) -> None:
        try:
            while not stop.is_set():
                self.step()
        finally:
            self._reader.close()
            self._drop()

    def problem(self) -> str | None:
        return self._problem

    def step(self) -> None:
        """One turn: read what has come, judge what is complete."""
        try:
            messages = self._reader.poll(POLL_SECONDS)
            given = self._reader.rebalanced()
            if given is not None:
                _log.info("partitions given", partitions=list(given))
                self._given, self._book = given, None
            if time.monotonic() < self._wait_until:
                return
            if self._book is None:
                self._load()
            else:
                for message in messages:
                    self._book.count(message)
                self._judge(self._book)
            self._problem = None if self._given is not None else "waiting for the group to share out the partitions"
            self._pause = FIRST_PAUSE
        except LogpipeError as error:
            self._hold(error)

    def _load(self) -> None:
        if not self._prepared:
            self._prepare()
            schema.require(self._connected())
            alerts.require(self._connected())
            self._prepared = True
        if not self._given:
            return
        topic_id = self._reader.topic_id()  # before the bounds, so that those of a newer topic are noticed
        bounds = self._reader.bounds()
        kept = {partition: bounds[partition] for partition in self._given if partition in bounds}
        connection = self._connected()
        self._book = Book(connection, self._policy, topic_id, kept, int(self._now(connection)))
        self._target = None
        self._reader.assign({partition: at.next_offset for partition, at in self._book.positions.items()})

    def _judge(self, book: Book) -> None:
        if self._target is None and time.monotonic() >= self._next_look:
            self._target = self._look(book)
            self._next_look = time.monotonic() + LOOK_SECONDS
        reached = self._reader.reached()
        if self._target and all(reached[partition] >= end for partition, end in self._target.ends.items()):
            self._commit(book, reached, self._target.complete)
            self._caught_up, self._target = self._target.caught_up, None
        elif book.size >= MAX_NEW:
            self._commit(book, reached, 0)

    def _commit(self, book: Book, reached: Mapping[int, int], complete: int) -> None:
        if self._reader.topic_id() != book.topic_id:
            raise StoreDown("kafka", "the topic of errors was deleted and made anew: it is read again from its start")
        book.commit(reached, complete)

    def _look(self, book: Book) -> _Target:
        """The ledger is read before the ends: a batch that does not wait there lies before the ends."""
        now = int(self._now(self._connected()))
        if any(position.judged > now for position in book.positions.values()):
            raise StoreDown("postgres", "its clock went back: the seconds that were judged too early are judged again")
        complete = now - GRACE_SECONDS
        waiting = reading.oldest_unpublished(self._connected(), self._dataset.name)
        if waiting is not None:
            complete = min(complete, max(waiting // 1_000_000, now - HOLD_SECONDS))
        bounds = self._reader.bounds()
        if not book.positions.keys() <= bounds.keys():
            raise StoreDown("kafka", "the topic of errors has fewer partitions than before")
        ends = {partition: bounds[partition][1] for partition in book.positions}
        return _Target(complete, ends, time.monotonic() - (now - complete))

    def _hold(self, error: LogpipeError) -> None:
        """Forget what is not stored, and begin again after a pause; the group is still polled."""
        _log.warning("waiting", seconds=self._pause, reason=str(error))
        self._problem = str(error)
        self._drop()
        self._reader.assign({})
        self._wait_until = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _drop(self) -> None:
        self._book = None
        if self._connection:
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._url)
        return self._connection
