"""What the description of a dataset refuses."""

from dataclasses import replace
from typing import Any

import pytest

from services.core.dataset import Alert, Column, Dataset, Kind
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
