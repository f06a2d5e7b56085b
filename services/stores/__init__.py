"""One file, or one package, describes one store. The folder is scanned, so a new store is a new file.

Each exports `STORE`, its description (`services.core.stores.Store`), whose name is the name of the file. Importing a
description imports no driver, except that of PostgreSQL, which every server process needs: the driver of a store is
imported when the store is opened. `memory` is the fake of the tests; `names` leaves it out.
"""

import importlib
import pkgutil

from services.core.errors import Invalid
from services.core.ports import Refiller, StoreReader, StoreWriter
from services.core.stores import Store

_FAKES = {"memory"}


def names() -> tuple[str, ...]:
    """Return the names of all stores, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _FAKES))


def all_stores() -> tuple[Store, ...]:
    """Return the descriptions of all stores, sorted by name."""
    return tuple(map(_described, names()))


def readable() -> tuple[Store, ...]:
    """Return the stores that can be queried, in the order in which rows reach them: first the one that ingest fills."""
    stores = (store for store in all_stores() if store.open_reader)
    return tuple(sorted(stores, key=lambda store: store.open_writer is not None))


def readers() -> tuple[str, ...]:
    """Return the names of the stores that can be queried and verified."""
    return tuple(store.name for store in all_stores() if store.open_reader)


def writers() -> tuple[str, ...]:
    """Return the names of the stores that stream_to_store can fill."""
    return tuple(store.name for store in all_stores() if store.open_writer)


def open_reader(name: str) -> StoreReader:
    """Open a reader of a store. Raises Invalid, naming the stores that there are."""
    store = _described(name) if name in names() else None
    if store is None or store.open_reader is None:
        raise Invalid(f"no store {name!r} to read from; there are: {', '.join(readers())}")
    return store.open_reader()


def open_writer(name: str) -> StoreWriter:
    """Open a writer of a store. Raises Invalid, naming the stores that there are."""
    store = _described(name) if name in names() else None
    if store is None or store.open_writer is None:
        raise Invalid(f"no store {name!r} to write to; there are: {', '.join(writers())}")
    return store.open_writer()


def open_refiller(name: str) -> Refiller:
    """Open what a replay writes by into a store whose own transactions keep its position. Raises Invalid."""
    store = _described(name)
    if store.open_refiller is None:
        raise Invalid(f"{name} cannot be replayed into")
    return store.open_refiller()


def _described(name: str) -> Store:
    store: Store = importlib.import_module(f"{__name__}.{name}").STORE
    if store.name != name:
        raise ValueError(f"the store of the file {name} is called {store.name}: give both the same name")
    return store
