"""Runs the streams of one process in a thread, until the process stops or a stream fails."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from threading import Event
from typing import Protocol

from fastapi import FastAPI
from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark.sql import SparkSession

from services.core.dataset import Dataset
from services.core.errors import LogpipeError, StoreDown
from services.lake import NAME
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.workers import Worker
from spark_jobs.session import open_session
from spark_jobs.settings import SparkSettings, StreamSettings

_SUPERVISE_SECONDS = 0.5
_LAG_EVERY = 10  # the lag is measured in each tenth turn of the supervision
_DRAIN_SECONDS = 18

_log = logs.get("driver")


class Stream(Protocol):
    """One streaming query. Its methods are called in the driver's thread and raise LogpipeError to end the process."""

    @property
    def dataset(self) -> Dataset: ...

    def start(self, spark: SparkSession) -> None:
        """Start the query; returns once it runs."""

    def supervise(self, spark: SparkSession) -> None:
        """Raise the error that ended the query, if it has ended. Called twice a second."""

    def stop(self, deadline: float) -> None:
        """Stop the query by `deadline` (monotonic) at the latest."""

    def report_lag(self) -> None:
        """Set the gauge of the offsets that were not read yet. Raises StoreDown."""

    def health(self) -> str | None:
        """Return why the stream is not ready; None if it is. May be called by any thread."""


WarmUp = Callable[[SparkSession, Event], None]
"""Called once, in the driver's thread, before the streams start. The process is ready after it has returned.

It blocks for a bounded time, and ends early when the event is set. It raises LogpipeError to end the process.
"""


class Driver:
    """Runs `prepare`, then `warm_up`, then the streams, in a thread. Repeats `prepare` while it raises StoreDown.

    `name` is the application's name in Spark. `error` is the reason if the driver ended by itself. It then
    sends SIGTERM to this process.
    """

    def __init__(
        self,
        name: str,
        settings: SparkSettings,
        streams: Sequence[Stream],
        prepare: Callable[[], None],
        warm_up: WarmUp | None = None,
    ) -> None:
        self.error: LogpipeError | None = None
        self._prepare = prepare
        self._warm_up = warm_up
        self._is_prepared = self._is_warming_up = False
        self._name = name
        self._settings = settings
        self._streams = streams
        self._stop = Event()
        self._worker = Worker("driver", self._turn)

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        """Let the running micro-batches end. The next process repeats one that does not end in time. Blocks."""
        self._stop.set()
        self._worker.stop(None)

    def health(self) -> str | None:
        """Return what the streams wait for before they can start; None once they start."""
        if self._is_prepared:
            return "starting: warming up" if self._is_warming_up else None
        failure = self._worker.health()
        return f"starting: {failure}" if failure else None

    def _turn(self) -> None:
        """The only turn of the thread, unless `prepare` raises StoreDown: then the worker repeats the turn."""
        try:
            self._prepare()
            self._is_prepared = True
            self._run_streams()
        except LogpipeError as error:
            if isinstance(error, StoreDown) and not self._is_prepared:
                raise
            self._fail(error)
        except (Py4JError, OSError) as error:
            self._fail(StoreDown(NAME, f"the JVM of Spark has ended: {error}"))
        except Exception as error:  # noqa: BLE001 - a thread must not end unnoticed
            _log.exception("driver failed")
            self._fail(LogpipeError(f"unexpected error: {error}"))

    def _run_streams(self) -> None:
        spark = open_session(self._name, self._settings)
        try:
            if self._warm_up:
                self._is_warming_up = True
                self._warm_up(spark, self._stop)
                self._is_warming_up = False
            if not self._stop.is_set():
                self._supervise(spark)
        finally:
            deadline = time.monotonic() + _DRAIN_SECONDS
            for stream in self._streams:
                stream.stop(deadline)
            spark.stop()

    def _supervise(self, spark: SparkSession) -> None:
        for stream in self._streams:
            stream.start(spark)
        turn = 0
        while not self._stop.wait(_SUPERVISE_SECONDS):
            for stream in self._streams:
                stream.supervise(spark)
                if turn % _LAG_EVERY == 0:
                    _report_lag(stream)
            turn += 1

    def _fail(self, error: LogpipeError) -> None:
        if self._stop.is_set():
            _log.warning("driver not stopped in order, the last micro-batch is repeated", reason=str(error))
        else:
            self.error = error
            os.kill(os.getpid(), signal.SIGTERM)


def run(
    name: str,
    settings: StreamSettings,
    port: int,
    streams: Sequence[Stream],
    prepare: Callable[[], None],
    warm_up: WarmUp | None = None,
) -> None:
    """Run the streams, and serve their health and metrics, until the process is told to stop.

    `prepare` and `warm_up`: see `Driver`. Raises the error that ended a stream.
    """
    driver, readiness = Driver(name, settings, streams, prepare, warm_up), Readiness()
    readiness.add("driver", driver.health)
    for stream in streams:
        readiness.add(stream.dataset.name, stream.health)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        driver.start()
        yield
        await asyncio.to_thread(driver.stop)

    serve(make_app(name.capitalize().replace("-", " "), settings, [], lifespan, readiness), settings.host, port)
    if driver.error:
        raise driver.error


def _report_lag(stream: Stream) -> None:
    try:
        stream.report_lag()
    except StoreDown as error:
        _log.warning("lag not measured", dataset=stream.dataset.name, reason=str(error))
