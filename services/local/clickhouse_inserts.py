"""Runs INSERT statements whose rows follow the statement, in the embedded ClickHouse engine."""

import os
import re
from dataclasses import dataclass

from chdb.session import Session

_STATEMENT_LIMIT = 1 << 18  # bytes, as max_query_size; what comes later is rows, and is not searched
# Every quantifier is possessive, so the time grows with the length of the text, whatever the text is. A quoted text or
# a comment without an end reaches to the end of the statement.
_QUOTED = "|".join(rf"{quote}(?:[^{quote}\\]++|\\.)*+(?:{quote}|\Z)" for quote in "'\"`")
_COMMENT = r"(?:--|\#[ !])[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/|\Z)"
_SETTINGS = r"SETTINGS\s++\w++\s*+="
_FORMAT_END = r"(?:[ \t]*+\r?\n|[ \t]*+;|[ \t]++|\Z)"
_FORMAT = rf"FORMAT\s++\w++{_FORMAT_END}"


def _tokens(end: str) -> str:
    """Return the pattern of the text before `end`, which is not looked for in quotes and comments."""
    return rf"(?:{_QUOTED}|{_COMMENT}|(?!(?:{end}))\w++|[^\w'\"`])*+"


_NO_ROWS = r"(?:VALUES|SELECT)\b"
# The match ends with the newline after the name of the format.
_STATEMENT = re.compile(
    (
        rf"\s*+(?P<target>INSERT\s++INTO\s{_tokens(f'{_NO_ROWS}|{_SETTINGS}|{_FORMAT}')})"
        rf"(?P<settings>{_SETTINGS}{_tokens(f'{_NO_ROWS}|{_FORMAT}')})?+"
        rf"FORMAT\s++(?P<format>\w++){_FORMAT_END}"
    ).encode(),
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
    parts = ("target", "settings", "format")
    target, settings, format_name = ((found[part] or b"").rstrip().decode() for part in parts)
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
        # A line of its own for each part: the one before it may end with a comment.
        result = session.query(f"{insert.target}\n{source}\n{insert.settings}\nFORMAT {insert.format}")
    finally:
        os.close(descriptor)
    return int(result.rows_written())
