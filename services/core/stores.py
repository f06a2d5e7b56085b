"""What a store is called, and what can be done with it. Each store has one description, which is found by folder scan
(see `services/stores`); nothing else spells a store's names.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from services.core.dataset import Dataset
from services.core.ports import Refiller, StoreReader, StoreWriter

OpenReader = Callable[[], StoreReader]
OpenWriter = Callable[[], StoreWriter]
OpenRefiller = Callable[[], Refiller]
DropDays = Callable[[Dataset, int, Collection[int]], int]


@dataclass(frozen=True, slots=True)
class Store:
    """`name`: in commands, in metrics, in errors and in the ledger. `route`: in URLs. `reply_name`: in replies.

    `label`: in texts for people. `open_reader` and `open_writer` open the store with settings from the environment;
    each is None where the store cannot be read, or cannot be filled by stream_to_store. `drop_days(dataset, before,
    keep)` drops all days of acceptance below `before` (days since 1970-01-01 UTC) except those in `keep`, returns how
    many, blocks, and raises StoreDown; None where retention has nothing to drop. `open_refiller` opens the
    writer that a replay uses, for a store whose own transactions keep its position.

    `engine`: the name of the engine that `open_reader` uses, '' where there is no choice. `other_engines`: the readers
    of the same data by other engines, by the engine's name.
    """

    name: str
    route: str
    reply_name: str
    label: str
    open_reader: OpenReader | None = None
    open_writer: OpenWriter | None = None
    drop_days: DropDays | None = None
    open_refiller: OpenRefiller | None = None
    engine: str = ""
    other_engines: Mapping[str, OpenReader] = field(default_factory=dict)
