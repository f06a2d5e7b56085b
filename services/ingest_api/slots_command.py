"""The command `logpipe slots`: parses, wires, runs."""

from collections.abc import Iterator, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from uuid import UUID, uuid4

import click
from rich.console import Console
from rich.table import Table

from services import datasets, stores
from services.acceptance.publisher import open_slot_producer
from services.core.backoff import Backoff
from services.core.errors import LogpipeError, StoreDown
from services.core.ports import StoreReader
from services.ingest_api.resolution import FilledStore, Resolved, resolve
from services.ledger import schema, slots
from services.ledger.slots import Lease
from services.postgres.connection import Connection, connect
from services.runtime import logs
from services.runtime.settings import KafkaSettings, PostgresSettings
from services.runtime.workers import Worker
from services.streams.kafka import KafkaPartitionReader
from services.streams.kafka_client import members, sink_group


class SlotsSettings(PostgresSettings, KafkaSettings):
    """Beside these, each store reads its own."""


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """List the slots of the processes that accept rows: who publishes them, and why one is stuck."""
    logs.configure("slots", "ERROR")
    if context.invoked_subcommand is None:
        with _failing_well(), _ledger(SlotsSettings()) as connection:
            _show(slots.all_slots(connection))


@main.command("resolve")
@click.argument("numbers", metavar="[SLOT]...", nargs=-1, type=click.IntRange(0))
@click.option("--store", "names", multiple=True, help="A store to ask; may be repeated. Default: all but PostgreSQL.")
def resolve_stuck(numbers: tuple[int, ...], names: tuple[str, ...]) -> None:
    """Find out which batches of stuck slots were published, mark them, and have the others published.

    Without SLOT: of every stuck slot. Every store that is filled from Kafka must answer, or be left out by naming the
    others. Nothing may fill these stores meanwhile.
    """
    settings, owner = SlotsSettings(), uuid4()
    url, known = settings.postgres_url.get_secret_value(), {d.name: d for d in datasets.all_datasets()}
    with _failing_well(), _ledger(settings) as connection, ExitStack() as opened:
        readers = [opened.enter_context(closing(stores.open_reader(name))) for name in names or stores.readers()]
        filled = [_filled_store(settings.kafka_url, reader) for reader in readers if reader.progress != "ledger"]
        own_progress = {store.reader.name for store in filled if store.reader.progress == "own"}
        open_reader = partial(KafkaPartitionReader, settings.kafka_url)
        open_producer = partial(open_slot_producer, settings.kafka_url)
        chosen = numbers or [slot.slot for slot in slots.all_slots(connection) if slot.stuck]
        if not chosen:
            click.echo("no slot is stuck")
        for slot in chosen:
            with _leased(connection, url, owner, slot) as lease:
                for resolved in resolve(connection, lease, known, filled, open_producer, open_reader):
                    _say(slot, resolved, own_progress)
            click.echo(f"slot {slot} is free: a process that accepts rows publishes what is left of it within seconds")


def _filled_store(kafka_url: str, reader: StoreReader) -> FilledStore:
    def consumers(dataset: str) -> int:
        return members(kafka_url, sink_group(reader.name, dataset))

    return FilledStore(reader, stores.open_writer(reader.name), consumers)


def _show(every: list[slots.Slot]) -> None:
    table = Table("slot", "owner", "unpublished batches", "stuck", box=None)
    for slot in every:
        table.add_row(str(slot.slot), "alive" if slot.is_alive else "none", str(slot.unpublished), slot.stuck or "no")
    Console().print(table)


def _say(slot: int, resolved: Resolved, own_progress: Set[str]) -> None:
    click.echo(
        f"slot {slot}, {resolved.dataset}: {resolved.in_topic} batches were found in the topic and marked;"
        f" {resolved.in_stores_only} are held by a store and no longer in the topic, and were marked;"
        f" {resolved.to_publish} are in neither, and will be published"
    )
    for store, count in resolved.lacking.items():
        way_out = "no topic has these rows any more, and this store is filled from topics alone"
        if store not in own_progress:
            way_out = f"run `logpipe replay --store {store} --dataset {resolved.dataset}`"
        click.echo(f"{store} lacks rows of {count} of these batches: {way_out}")


@contextmanager
def _ledger(settings: PostgresSettings) -> Iterator[Connection]:
    with closing(connect(settings.postgres_url.get_secret_value())) as connection:
        schema.require(connection)
        yield connection


@contextmanager
def _leased(connection: Connection, url: str, owner: UUID, slot: int) -> Iterator[Lease]:
    """Lease the slot, and renew the lease in a thread until the end; then any ingest API can adopt the slot."""
    lease = slots.take_over(connection, owner, slot)

    def renew() -> float:
        with closing(connect(url)) as own:
            slots.renew(own, owner)
        return slots.RENEW_SECONDS

    retry = Backoff(slots.RENEW_SECONDS, slots.RENEW_SECONDS)
    worker = Worker("lease", renew, backoff=retry, delay=slots.RENEW_SECONDS)
    worker.start()
    try:
        yield lease
    finally:
        worker.stop(None)
        with suppress(StoreDown):  # the lease then expires
            slots.release(connection, lease)


@contextmanager
def _failing_well() -> Iterator[None]:
    try:
        yield
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error
