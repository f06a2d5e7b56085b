"""What the description of a dataset refuses."""

from dataclasses import replace
from typing import Any

import pytest

from services import datasets
from services.core.dataset import Alert, Column, Dataset, Kind
from services.core.errors import Invalid
from services.core.queries import ListQuery
from services.datasets.footprints import DATASET as FOOTPRINTS
from services.stores.memory import MemoryStore

PAYMENTS = Dataset(
    name="payments",
    singular="payment",
    plural="payments",
    topic="payments.raw",
    key="account",
    time="timestamp",
    columns=(
        Column("timestamp", "timestamp", required=True),
        Column("account", "text", required=True),
        Column("amount", "number"),
        Column("details", "json"),
    ),
    groupings=("account",),
    orderings=("timestamp", "id"),
    filters=("account",),
    alert=Alert("payments.alerts", "account", "unknown"),
    search="account",
)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"key": "amount"}, "key: amount is of another kind"),
        ({"key": "timestamp"}, "key: timestamp is of another kind"),
        ({"time": "account"}, "time: account is of another kind"),
        ({"search": "amount"}, "search: amount is of another kind"),
        ({"search": "details"}, "search: details is of another kind"),
        ({"alert": Alert("payments.alerts", "amount", "0")}, "alert: amount is of another kind"),
        ({"alert": Alert("payments.alerts", "level", "ERROR")}, "no column 'level'"),
        ({"groupings": ("amount",)}, "groupings: amount is of another kind"),
        ({"groupings": ("id",)}, "no column 'id'"),
        ({"orderings": ("amount",)}, "orderings: amount is of another kind"),
        ({"filters": ("details",)}, "filters: details is of another kind"),
        ({"key": "iban"}, "no column 'iban'"),
    ],
)
def test_a_column_is_used_only_as_its_kind_allows(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        replace(PAYMENTS, **change)


@pytest.mark.parametrize("source", ["account", "address"])
def test_a_column_is_derived_only_from_a_json_column(source: str) -> None:
    columns = (*PAYMENTS.columns, Column("city", "category", derived_from=(source, "city")))
    with pytest.raises(ValueError, match=f"city is derived from {source}, which is no json column"):
        replace(PAYMENTS, columns=columns)


def test_a_list_is_ordered_by_the_time_of_its_dataset() -> None:
    query = ListQuery(FOOTPRINTS)
    assert query.order_by == "footprint_time"
    assert query.newest_first
    assert MemoryStore().execute(query, 9).rows == []


@pytest.mark.parametrize("kind", ["timestamp", "uuid"])
def test_a_column_whose_kind_has_no_missing_value_must_be_required(kind: Kind) -> None:
    with pytest.raises(ValueError, match=f"a {kind} has no missing value, so it must be required"):
        Column("seen", kind)


def test_a_dataset_on_request_is_part_of_a_pipeline_only_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(datasets.EXTRA, raising=False)
    assert "bench_logs" not in {dataset.name for dataset in datasets.all_datasets()}
    assert datasets.find("bench_logs").on_request
    monkeypatch.setenv(datasets.EXTRA, " bench_logs, ")
    assert "bench_logs" in {dataset.name for dataset in datasets.all_datasets()}
    monkeypatch.setenv(datasets.EXTRA, "bench_logs,payments")
    with pytest.raises(Invalid, match="payments is no dataset on request; there are: bench_logs"):
        datasets.all_datasets()


def test_the_log_lines_of_benchmarks_are_those_of_logs() -> None:
    ours, theirs = datasets.find("bench_logs"), datasets.find("logs")
    for name in ("columns", "groupings", "orderings", "filters", "search", "key", "time"):
        assert getattr(ours, name) == getattr(theirs, name), name
