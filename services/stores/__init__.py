"""One file, or one package, = one store, found by scanning the folder; its name is the store's name.

What a store exports is what it can do: `open_reader() -> StoreReader`, `open_writer() -> StoreWriter`, or both, each
reading its own settings from the environment. A store that several engines can read also exports the others by name,
`ENGINES: Mapping[str, Callable[[], StoreReader]]`; `open_reader` gives the usual one. A store's driver is imported when
that store is opened, not before. `memory` is the tests' fake and is not offered.
"""

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import cast

from services.core.dataset import Dataset
from services.core.errors import Invalid
from services.core.ports import StoreReader, StoreWriter

_FAKES = {"memory"}


def names() -> tuple[str, ...]:
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _FAKES))


def readers() -> tuple[str, ...]:
    """The stores that answer questions."""
    return tuple(name for name in names() if hasattr(_module(name), "open_reader"))


def writers() -> tuple[str, ...]:
    """The stores that stream_to_store can fill."""
    return tuple(name for name in names() if hasattr(_module(name), "open_writer"))


def open_reader(name: str) -> StoreReader:
    """Raises Invalid, naming those there are."""
    if name not in names() or not hasattr(_module(name), "open_reader"):
        raise Invalid(f"no store {name!r} to read from; there are: {', '.join(readers())}")
    return cast(StoreReader, _module(name).open_reader())


def engines(name: str) -> Mapping[str, Callable[[], StoreReader]]:
    """The other engines that can read this store, by name; none for most."""
    return cast(Mapping[str, Callable[[], StoreReader]], getattr(_module(name), "ENGINES", {}))


def open_writer(name: str) -> StoreWriter:
    """Raises Invalid, naming those there are."""
    if name not in names() or not hasattr(_module(name), "open_writer"):
        raise Invalid(f"no store {name!r} to write to; there are: {', '.join(writers())}")
    return cast(StoreWriter, _module(name).open_writer())


def drop_days(name: str, dataset: Dataset, before: int, keep: Collection[int]) -> int:
    """Drop what a store has of all days of acceptance below `before`, except those in `keep`; how many days.

    Days are counted from 1970-01-01 UTC. Nothing happens for a store that does not export `drop_days`.
    """
    drop = getattr(_module(name), "drop_days", None)
    return drop(dataset, before, keep) if drop else 0


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
