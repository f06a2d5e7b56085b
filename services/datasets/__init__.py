"""One file = one dataset: a module of this folder that has a `DATASET`. Found by scanning the folder."""

import importlib
import pkgutil
from collections.abc import Iterator

from services.core.dataset import Dataset
from services.core.errors import Invalid


def _scan() -> Iterator[Dataset]:
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        yield importlib.import_module(f"{__name__}.{module.name}").DATASET


def all_datasets() -> tuple[Dataset, ...]:
    """Every dataset, ordered by name; two of one name or one topic raise ValueError."""
    found = tuple(sorted(_scan(), key=lambda d: d.name))
    for attribute in ("name", "topic", "singular", "plural"):
        values = [getattr(d, attribute) for d in found]
        if len(set(values)) != len(values):
            raise ValueError(f"two datasets share a {attribute}: {values}")
    return found


def find(name: str) -> Dataset:
    """Return the dataset called `name`; raises Invalid naming those there are."""
    known = {d.name: d for d in all_datasets()}
    if name not in known:
        raise Invalid(f"unknown dataset {name!r}; there are: {', '.join(known)}")
    return known[name]
