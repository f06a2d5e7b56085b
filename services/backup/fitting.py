"""Makes a restored database fit for use: the ledger, the alerts, and the slots where no topic has their batches."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from services import datasets, stores
from services.alerts import repository as alerts
from services.core.dataset import Dataset
from services.core.errors import Invalid, NeedsOperator, StoreDown
from services.core.ports import StoreReader
from services.ledger import restore
from services.ledger.restore import Leap
from services.ledger.sink_progress import is_empty
from services.postgres.connection import Connection
from services.streams import topics


def make_fit(connection: Connection, names: Sequence[str]) -> Leap:
    """Give the ledger a new identity, and ids above all that were given out. `names`: the stores to be replayed.

    Raises StoreDown and NeedsOperator.
    """
    leap = restore.after_restore(connection, names, [dataset.name for dataset in datasets.all_datasets()])
    alerts.skip_used_ids(connection)
    return leap


def filled(chosen: Sequence[str] = ()) -> list[str]:
    """Return the names of the stores that are filled from Kafka, and refilled by replays: all, or those of `chosen`.

    Raises Invalid if one of `chosen` is no such store.
    """
    names = [store.name for store in stores.all_stores() if store.open_reader and store.open_writer]
    if unknown := set(chosen) - set(names):
        raise Invalid(f"no store is filled from Kafka that is called {', '.join(sorted(unknown))}: {', '.join(names)}")
    return [name for name in names if not chosen or name in chosen]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What Kafka and the stores have: the topic of each dataset that has one, and the stores with rows of a dataset."""

    topics: Mapping[str, topics.ExistingTopic]
    holders: Mapping[str, list[str]]


def look_around(kafka_url: str, names: Sequence[str]) -> Surroundings:
    """Look at Kafka and at the stores of these names. Raises StoreDown if one of them is unreachable."""
    known = datasets.all_datasets()
    present = topics.existing_topics(kafka_url, [dataset.topic for dataset in known])
    holders: dict[str, list[str]] = {dataset.name: [] for dataset in known}
    for name in names:
        with closing(stores.open_reader(name)) as reader:
            for dataset in known:
                if _has_rows(reader, dataset):
                    holders[dataset.name].append(name)
    return Surroundings(present, holders)


def _has_rows(reader: StoreReader, dataset: Dataset) -> bool:
    if reader.progress == "sink" and not reader.table_id(dataset):
        return False  # there is no table
    return not is_empty(reader, dataset)


def rebase(connection: Connection, around: Surroundings) -> None:
    """Let batches that only PostgreSQL has be published to the topics that there are now. Raises StoreDown.

    Where a store has rows, or the topic is one that the ledger knows, some of these batches may have been published.
    Then the slots find out themselves, or `logpipe slots resolve` does. Raises NeedsOperator if a topic has messages of
    another ledger.
    """
    for dataset in datasets.all_datasets():
        topic = around.topics.get(dataset.topic)
        if topic and topic.topic_id in restore.known_topics(connection, dataset.topic):
            continue
        if topic and topic.messages:
            raise _foreign(dataset)
        if not around.holders[dataset.name]:
            restore.declare_unpublished(connection, dataset.name)


def _foreign(dataset: Dataset) -> NeedsOperator:
    return NeedsOperator(
        f"topic {dataset.topic} has messages, and is none that this ledger published to: rows of another ledger would"
        " get into the stores. Delete it (`kafka-topics.sh --bootstrap-server ADDRESS --delete --topic"
        f" {dataset.topic}`), empty the stores that have loaded it, and run this command again"
    )


def unreachable(error: StoreDown) -> NeedsOperator:
    return NeedsOperator(
        f"{error}: start PostgreSQL, Kafka and every store first, and no process of the pipeline; leave out a store"
        " that is not in use by naming the others with --store"
    )
