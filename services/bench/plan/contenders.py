"""What a plan calls a store: the store's name, with `:engine` for an engine that is not the store's default."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services import stores


@dataclass(frozen=True, slots=True)
class Contender:
    """One store by one engine. `parameters`: of the query API, they choose the engine."""

    name: str
    label: str
    route: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def contenders() -> Mapping[str, Contender]:
    """Return all of them by name, in the order in which rows reach the stores."""
    found: dict[str, Contender] = {}
    for store in stores.readable():
        label = f"{store.label} ({store.engine})" if store.engine else store.label
        found[store.name] = Contender(store.name, label, store.route)
        for engine in store.other_engines:
            name = f"{store.name}:{engine}"
            found[name] = Contender(name, f"{store.label} ({engine})", store.route, {"engine": engine})
    return found
