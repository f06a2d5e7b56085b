"""`logpipe stream-to-store` refuses what can never work before it serves."""

from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from services import stores
from services.stores.memory import MemoryStore
from services.stream_to_store import main


class OfTheWrongKind(MemoryStore):
    progress = "ledger"  # type: ignore[assignment]


def test_a_store_whose_reader_is_of_the_wrong_kind_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = Mock()
    monkeypatch.setattr(main, "serve", serve)
    monkeypatch.setattr(stores, "open_writer", lambda name: MemoryStore())
    monkeypatch.setattr(stores, "open_reader", lambda name: OfTheWrongKind())
    result = CliRunner().invoke(main.main, ["--store", "memory"])
    assert result.exit_code == 1
    assert "its reader must have progress 'sink'" in result.output
    serve.assert_not_called()


def test_an_unknown_store_is_refused_with_a_message() -> None:
    result = CliRunner().invoke(main.main, ["--store", "paper"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no store 'paper' to write to; there are:")
