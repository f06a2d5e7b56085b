"""How a query that runs in a store is ended by another thread, because the client no longer waits for its result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from services.core.errors import QueryCancelled


class Stop:
    """The request to end one query. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_stopped = False
        self._end: Callable[[], object] | None = None

    @contextmanager
    def calling(self, end: Callable[[], object]) -> Iterator[None]:
        """Make `end_query` call `end` while the `with` statement runs. Used by the store that runs the query.

        `end` is called by another thread, and never after the `with` statement: by then, the connection may serve
        another query. Raises QueryCancelled when the query was stopped before.
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

    def end_query(self) -> None:
        """End the query, or keep it from starting. Blocks until the store has got the request."""
        with self._lock:
            self._is_stopped = True
            if self._end is not None:
                self._end()
                self._end = None
