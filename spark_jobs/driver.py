"""The streams of one process, run in a thread until it is told to stop, or until one of them fails."""

import os
import signal
import time
from collections.abc import Sequence
from threading import Event, Thread

from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark.sql import SparkSession

from services.core.errors import LogpipeError, StoreDown
from services.runtime import logs
from services.stores.lake import NAME
from spark_jobs.session import open_session
from spark_jobs.settings import StreamToLakeSettings
from spark_jobs.stream import LakeStream

_SUPERVISE_SECONDS = 0.5
_LAG_EVERY = 10  # turns of the supervision
_DRAIN_SECONDS = 18

_log = logs.get("stream_to_lake")


class Driver:
    """`error`: why it ended by itself; then this process is sent a SIGTERM."""

    def __init__(self, settings: StreamToLakeSettings, streams: Sequence[LakeStream]) -> None:
        self.error: LogpipeError | None = None
        self._settings = settings
        self._streams = streams
        self._stop = Event()
        self._thread = Thread(target=self._run, name="driver", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the batches under way end; what is not done in time is done again by the next process."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            spark = open_session("stream-to-lake", self._settings)
            try:
                self._supervise(spark)
            finally:
                deadline = time.monotonic() + _DRAIN_SECONDS
                for stream in self._streams:
                    stream.stop(deadline)
                spark.stop()
        except LogpipeError as error:
            self._fail(error)
        except (Py4JError, OSError) as error:
            self._fail(StoreDown(NAME, f"the JVM of Spark is gone: {error}"))
        except Exception as error:  # noqa: BLE001 - a thread must not die in silence
            _log.exception("unexpected error")
            self._fail(LogpipeError(f"unexpected error: {error}"))

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
            _log.warning("not stopped in order: the last batch will be repeated", reason=str(error))
        else:
            self.error = error
            os.kill(os.getpid(), signal.SIGTERM)


def _report_lag(stream: LakeStream) -> None:
    try:
        stream.report_lag()
    except StoreDown as error:
        _log.warning("lag unknown", dataset=stream.dataset.name, reason=str(error))
