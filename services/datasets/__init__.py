"""One file = one dataset: a module of this folder that has a `DATASET`. Found by scanning the folder."""

import importlib
import os
import pkgutil
from collections.abc import Iterator

from services.core.dataset import Dataset
from services.core.errors import Invalid

EXTRA = "LOGPIPE_EXTRA_DATASETS"
"""The variable that names datasets on request, comma-separated (`runtime.settings.Settings.extra_datasets`)."""


def _scan() -> Iterator[Dataset]:
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        yield importlib.import_module(f"{__name__}.{module.name}").DATASET


def described() -> tuple[Dataset, ...]:
    """Every dataset, those on request, too, ordered by name; two of one name or one topic raise ValueError."""
    found = tuple(sorted(_scan(), key=lambda d: d.name))
    for attribute in ("name", "topic", "singular", "plural"):
        values = [getattr(d, attribute) for d in found]
        if len(set(values)) != len(values):
            raise ValueError(f"two datasets share a {attribute}: {values}")
    return found


def all_datasets() -> tuple[Dataset, ...]:
    """The datasets of this pipeline, ordered by name: of those on request, the ones that LOGPIPE_EXTRA_DATASETS names.

    Raises Invalid if the variable names another one.
    """
    wanted = {name for part in os.environ.get(EXTRA, "").split(",") if (name := part.strip())}
    found = described()
    on_request = [dataset.name for dataset in found if dataset.on_request]
    if unknown := sorted(wanted.difference(on_request)):
        raise Invalid(f"{EXTRA}: {', '.join(unknown)} is no dataset on request; there are: {', '.join(on_request)}")
    return tuple(dataset for dataset in found if not dataset.on_request or dataset.name in wanted)


def find(name: str) -> Dataset:
    """Return the dataset called `name`, also one on request; raises Invalid naming those there are."""
    known = {d.name: d for d in described()}
    if name not in known:
        raise Invalid(f"unknown dataset {name!r}; there are: {', '.join(known)}")
    return known[name]
