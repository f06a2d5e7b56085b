"""A room's tables are read and written by that room alone."""

import re
from pathlib import Path

import pytest

from services.migrate.service import ROOMS
from services.postgres.migrations import Migrations

SERVICES = Path(__file__).parents[2] / "services"
PLANTED = SERVICES / "bench"  # measurements plant a year of batches, which no room does
SQL = r"\b(?:FROM|JOIN|INTO|UPDATE|TRUNCATE|LOCK|TABLE(?: IF NOT EXISTS)?)\s+"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.folder.parent.name)
def test_no_other_room_names_a_rooms_tables_in_sql(room: Migrations) -> None:
    owner = room.folder.parent
    made = [re.findall(rf"{SQL}(\w+) \(", file.read_text()) for file in room.folder.glob("*.sql")]
    tables = {table for found in made for table in found}
    assert tables
    statement = re.compile(rf"{SQL}(?:{'|'.join(sorted(tables))})\b")
    others = [file for file in SERVICES.rglob("*.py") if owner not in file.parents and PLANTED not in file.parents]
    assert {file.name: found for file in others if (found := statement.findall(file.read_text()))} == {}
    assert any(statement.search(file.read_text()) for file in owner.glob("*.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.folder.parent.name)
def test_a_migration_is_named_for_its_room(room: Migrations) -> None:
    """yoyo knows a migration by the name of its file alone, so that two rooms must not use the same name."""
    assert room.names()
    assert all(re.fullmatch(rf"{room.folder.parent.name}-\d{{4}}-[a-z0-9-]+", name) for name in room.names())
