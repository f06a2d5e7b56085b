"""A new dataset is one file, a new store is one file: both dropped in here, and found everywhere."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from services import datasets, stores
from services.core.dataset import Column
from services.core.errors import Invalid
from services.core.rows import RowCodec
from services.datasets.logs import DATASET as LOGS
from services.generator.synthesis import Synthesizer
from services.ingest_api.endpoints import collect_router
from services.stores import postgres
from services.stores.clickhouse.tables import create_table
from spark_jobs import schema as spark_schema

DATASET = """
from services.core.dataset import Column, Dataset

DATASET = Dataset(
    name="payments", singular="payment", plural="payments", topic="payments.raw", key="account", time="timestamp",
    columns=(
        Column("payment_id", "uuid", wire="paymentId", required=True),
        Column("timestamp", "timestamp", required=True),
        Column("account", "text", required=True),
        Column("currency", "category"),
        Column("amount", "number"),
    ),
    groupings=("currency",), orderings=("timestamp", "id"), filters=("account",),
)
"""

STORE = """
from services.core.stores import Store
from services.stores.memory import MemoryStore

class ToyStore(MemoryStore):
    name = "toy"


STORE = Store("toy", "toys", "toy", "Toy", open_reader=ToyStore, open_writer=ToyStore)
"""


@pytest.fixture
def dropped_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, name, source in ((datasets, "payments", DATASET), (stores, "toy", STORE)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    return


@pytest.mark.usefixtures("dropped_in")
def test_a_dataset_of_one_file_is_known_everywhere() -> None:
    dataset = datasets.find("payments")
    paths = {getattr(route, "path", "") for route in collect_router(datasets.all_datasets()).routes}
    assert {"/api/collect/payment", "/api/collect/payments", "/api/collect/logs"} <= paths
    lines = Synthesizer(dataset, seed=1, start_us=0, step_us=1).lines(0, 100)
    rows = RowCodec(dataset).decode_lines(b"\n".join(lines))
    assert rows.count == 100
    assert len(next(iter(postgres.copy_rows(dataset, rows, 1, 0)))) == len(postgres.copy_types(dataset)) == 7
    assert "payment_id" in create_table(dataset)
    assert all(name in spark_schema.line_schema(dataset) for name in dataset.column_names)


@pytest.mark.usefixtures("dropped_in")
def test_a_store_of_one_file_is_known_everywhere() -> None:
    assert "toy" in stores.readers()
    assert "toy" in stores.writers()
    assert stores.open_reader("toy").name == "toy"
    assert [store.route for store in stores.all_stores() if store.name == "toy"] == ["toys"]


@pytest.mark.usefixtures("dropped_in")
def test_a_store_whose_name_is_not_that_of_its_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = importlib.import_module("services.stores.toy")
    monkeypatch.setattr(toy, "STORE", replace(toy.STORE, name="other"))
    with pytest.raises(ValueError, match="other"):
        stores.all_stores()


def test_no_two_stores_share_a_name() -> None:
    described = stores.all_stores()
    for names in ([s.name for s in described], [s.route for s in described], [s.reply_name for s in described]):
        assert len(set(names)) == len(names)


def test_a_description_can_be_read_without_drivers() -> None:
    drivers = {"chdb", "clickhouse_connect", "deltalake", "pyarrow", "pyspark"}
    read = f"import sys; from services import stores; stores.all_stores(); print(*{drivers} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", read], check=True, capture_output=True, text=True).stdout == "\n"


def test_without_the_files_neither_is_known() -> None:
    with pytest.raises(Invalid, match="events, footprints, logs"):
        datasets.find("payments")
    with pytest.raises(Invalid, match="clickhouse"):
        stores.open_reader("toy")


@pytest.mark.parametrize(
    ("use", "column"),
    [
        ("groupings", "amount"),
        ("groupings", "timestamp"),
        ("orderings", "amount"),
        ("orderings", "payment_id"),
        ("filters", "amount"),
        ("filters", "metadata"),
    ],
)
def test_a_use_that_stores_would_answer_differently_is_refused(use: str, column: str) -> None:
    columns = (*LOGS.columns, Column("amount", "number"), Column("payment_id", "uuid", required=True))
    with pytest.raises(ValueError, match=f"logs: {use}: {column} is of another kind"):
        replace(LOGS, columns=columns, **cast(Any, {use: (column,)}))
