"""Runs INSERT statements whose rows follow the statement, in the embedded ClickHouse engine."""

import os
import re
from dataclasses import dataclass

from chdb.session import Session

_STATEMENT_LIMIT = 1 << 18  # bytes, as max_query_size; what comes later is rows, and is not searched
# The match ends with the newline after the name of the format.
_STATEMENT = re.compile(
    rb"\s*(?P<target>INSERT\s+INTO\s(?:(?!(?<!`)\b(?:VALUES|SELECT)\b).)*?)\s*"
    rb"(?P<settings>\bSETTINGS\s+\w+\s*=(?:(?!(?<!`)\b(?:VALUES|SELECT)\b).)*?)?\s*"
    rb"\bFORMAT\s+(?P<format>\w+)(?:[ \t]*\r?\n|[ \t]*;|[ \t]+|$)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT statement in parts: `INSERT INTO table (columns)`, `SETTINGS ...` or '', the format, and the rows."""

    target: str
    settings: str
    format: str
    rows: memoryview


def parse(text: bytes) -> Insert | None:
    """Return the insert, or None if no rows follow the statement."""
    found = _STATEMENT.match(text[:_STATEMENT_LIMIT])
    if found is None:
        return None
    target, settings, format_name = ((found[name] or b"").decode() for name in ("target", "settings", "format"))
    return Insert(target, settings, format_name, memoryview(text)[found.end() :])


def run(session: Session, insert: Insert) -> int:
    """Insert the rows from a file in memory, and return their number. Raises RuntimeError with the engine's message.

    The engine's other call for inserts, `send_insert`, is not used: `send_insert` reports success when the commit of
    the part fails, for example because the disk is full or because a row violates a CHECK (ADR 0014).
    """
    descriptor = os.memfd_create("insert")
    try:
        rows = insert.rows
        while rows:
            rows = rows[os.write(descriptor, rows) :]
        source = f"FROM INFILE '/proc/self/fd/{descriptor}' COMPRESSION 'none'"
        result = session.query(f"{insert.target} {source} {insert.settings} FORMAT {insert.format}")
    finally:
        os.close(descriptor)
    return int(result.rows_written())
