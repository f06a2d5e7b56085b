"""How a query that runs in a store is ended by another thread, because the client no longer waits for its result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from services.core.errors import QueryCancelled


class Stop:
    """Belongs to one query. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_stopped = False
        self._end: Callable[[], object] | None = None

    @contextmanager
    def by(self, end: Callable[[], object]) -> Iterator[None]:
        """For the store that runs the query: while the block runs, `end` ends the query.

        `end` is called by another thread and never after the block: a connection may then serve another query. Raises
        QueryCancelled when the query was stopped before.
        """
        with self._lock:
            if self._is_stopped:
                raise QueryCancelled("the client no longer waits for the result of this query")
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None

    def now(self) -> None:
        """End the query, or keep it from starting. Blocks as long as the store takes to be told."""
        with self._lock:
            self._is_stopped = True
            if self._end is not None:
                self._end()
                self._end = None
