"""One file = one store, found by scanning the folder; the file's name is the store's name.

What a store exports is what it can do: `open_reader() -> StoreReader`, `open_writer() -> StoreWriter`, or both, each
reading its own settings from the environment. A store's driver is imported when that store is opened, not before.
`memory` is the tests' fake and is not offered.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import cast

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


def open_writer(name: str) -> StoreWriter:
    """Raises Invalid, naming those there are."""
    if name not in names() or not hasattr(_module(name), "open_writer"):
        raise Invalid(f"no store {name!r} to write to; there are: {', '.join(writers())}")
    return cast(StoreWriter, _module(name).open_writer())


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
