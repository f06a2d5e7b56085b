"""The engines of each store: the default one, and others that a request asks for by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from services.core.errors import Invalid
from services.core.ports import StoreReader
from services.core.stores import OpenReader, Store
from services.query_api.query_threads import QueryThreads


class Engine:
    """One way to read one store. An engine has threads of its own, so one that hangs blocks no other engine.

    `reply_name`: its name in replies. `name`: its name in metrics and in the errors of its threads; a reader names
    itself in its own errors. `default_reader`: the reader of the store's default engine. Its watermark holds for all
    engines, because they read the same data.
    """

    def __init__(
        self, store: Store, default_reader: StoreReader, other: str = "", open_other: OpenReader | None = None
    ) -> None:
        """Make the default engine; with `other`, the engine of that name, which `open_other` opens at its first use."""
        suffix = f"_{other}" if other else ""
        self.store, self.default_reader = store, default_reader
        self.reply_name, self.name = store.reply_name + suffix, store.name + suffix
        self.threads = QueryThreads(self.name)
        self._open = open_other
        self._opening = Lock()
        self._reader = None if open_other else default_reader

    def reader(self) -> StoreReader:
        """Return the reader, opened at its first use. Raises StoreDown."""
        with self._opening:
            if self._reader is None:
                assert self._open is not None
                self._reader = self._open()
            return self._reader

    def close(self) -> None:
        self.threads.close()
        if self._reader is not None:
            self._reader.close()


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """A store with its engines."""

    store: Store
    default: Engine
    others: Mapping[str, Engine]

    @classmethod
    def of(cls, store: Store) -> "OpenedStore":
        """Open the default engine of a store that can be read."""
        assert store.open_reader is not None
        default_reader = store.open_reader()
        others = {name: Engine(store, default_reader, name, opened) for name, opened in store.other_engines.items()}
        return cls(store, Engine(store, default_reader), others)

    @property
    def engines(self) -> tuple[Engine, ...]:
        return (self.default, *self.others.values())

    def engine(self, name: str | None) -> Engine:
        """Return the engine called `name`; the default one for None. Raises Invalid, which names those that exist."""
        if name is None or (name and name == self.store.engine):
            return self.default
        if name not in self.others:
            there = ", ".join(filter(None, [self.store.engine, *self.others])) or "none to choose from"
            raise Invalid(f"unknown engine {name!r} of {self.store.route}; there are: {there}")
        return self.others[name]
