"""The engines of each store: the default one, and others that are asked for by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock

from services.core.errors import Invalid
from services.core.ports import StoreReader
from services.query_api.pools import Pool

OpenReader = Callable[[], StoreReader]


class Engine:
    """One way to read one store, with threads of its own: when it hangs, it holds up nobody who asks others."""

    def __init__(self, store: StoreReader, other: str = "", open_other: OpenReader | None = None) -> None:
        """The default one, or the `other` one of that name."""
        self.store = store  # whose watermark holds for it: all engines of a store read the same data
        suffix = f"_{other}" if other else ""
        self.source, self.label = store.source + suffix, store.name + suffix
        self.pool = Pool(self.label)
        self._open = open_other
        self._opening = Lock()
        self._reader = None if open_other else store

    def reader(self) -> StoreReader:
        """Opened at its first use."""
        with self._opening:
            if self._reader is None:
                assert self._open is not None
                self._reader = self._open()
            return self._reader

    def close(self) -> None:
        self.pool.close()
        if self._reader is not None:
            self._reader.close()


@dataclass(frozen=True, slots=True)
class Store:
    """A store as it is asked: by its default engine, or by another one that is asked for by name."""

    reader: StoreReader
    default: Engine
    engines: Mapping[str, Engine] = field(default_factory=dict)

    @classmethod
    def of(cls, reader: StoreReader, others: Mapping[str, OpenReader]) -> "Store":
        return cls(reader, Engine(reader), {name: Engine(reader, name, opened) for name, opened in others.items()})

    def engine(self, name: str | None) -> Engine:
        """Raises Invalid, naming those there are."""
        if name is None or (name and name == self.reader.engine):
            return self.default
        if name not in self.engines:
            there = ", ".join(filter(None, [self.reader.engine, *self.engines])) or "none to choose from"
            raise Invalid(f"unknown engine {name!r} of {self.reader.route}; there are: {there}")
        return self.engines[name]
