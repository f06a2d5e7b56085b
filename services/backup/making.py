"""Makes a backup: one consistent state of PostgreSQL, written by pg_dump beside all other sessions."""

from datetime import UTC, datetime
from pathlib import Path

from services.backup import folder as files
from services.backup import programs
from services.ledger import schema
from services.ledger.identity import ledger_id
from services.postgres.clock import now_microseconds
from services.postgres.connection import connect, major_version


def make(url: str, folder: Path) -> Path:
    """Make a backup in a new folder in `folder`, and return that. Blocks. Raises StoreDown and NeedsOperator."""
    with connect(url) as connection:
        schema.require(connection)
        ledger = str(ledger_id(connection))
        begun_at = datetime.fromtimestamp(now_microseconds(connection) / 1e6, UTC)
        server = major_version(connection)
    program = programs.find("pg_dump", server)

    def dump(file: Path) -> None:
        # The least compression: more would cost a core, and holds the snapshot longer.
        programs.run(program, url, "--format=custom", "--compress=1", f"--file={file}")

    return files.write(folder, begun_at, ledger, dump)
