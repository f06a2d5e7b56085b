"""What a publisher does with rows that it reads back. tests/integration/test_publisher.py has the rest."""

from typing import Any
from unittest.mock import Mock

import pytest

from services.acceptance.publisher import MessageCache, SlotKafka, SlotPublisher
from services.core.errors import NeedsOperator
from services.core.ids import first_id
from services.core.ledger import Batch
from services.datasets.footprints import DATASET
from services.ledger.slots import Lease


def row(status: float | None) -> tuple[Any, ...]:
    return (first_id(7), 5, "GET", "/", 5, status, None, "", "")


def test_a_row_that_is_there_twice_needs_an_operator() -> None:
    rows = Mock()
    rows.rows_of.return_value = [row(None), row(200.0)]
    publisher = SlotPublisher(Lease(0, 1), {DATASET.name: DATASET}, Mock(spec=SlotKafka), MessageCache(0), rows, 1)
    with pytest.raises(NeedsOperator, match="has 1 rows in the ledger and 2 in its table"):
        publisher._messages(Batch(7, 0, DATASET.name, 1, 0, 5))
