"""The rights of clients of the embedded ClickHouse engine: its user `default` has what the pipeline needs.

The user has no right to reach files, URLs, other servers or programs: the table functions and engines `file`,
`url`, `s3`, `remote`, `mysql`, ...; dictionaries; named collections; backups; users; SYSTEM. Settings that name a file
or an address have a fixed value.

The engine runs two kinds of statement without any right, so `refusal` looks for their words. INFILE and OUTFILE read
and write files of the client, and here client and engine are one process. KILL ends queries of the same user, also in
a read-only session. The function `file` remains; the confinement of the process stops it (`confinement`).
"""

import re
from pathlib import Path

from chdb.session import Session

_GRANTS = (
    "SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, CREATE TEMPORARY TABLE, DROP, TRUNCATE,"
    " OPTIMIZE, KILL QUERY, SHOW ON *.*"
)
_FIXED_SETTINGS = (
    "format_avro_schema_registry_url",
    "format_schema",
    "format_template_resultset",
    "format_template_row",
    "merge_tree_disk",
    "merge_tree_storage_policy",
)
_CLIENT_FILES = re.compile(r"\b(?:INFILE|OUTFILE)\b", re.IGNORECASE)
_KILL = re.compile(r"\bKILL\b", re.IGNORECASE)

READ_ONLY = {"readonly": "2"}
"""The setting of a request that must change nothing, the same as for GET in a ClickHouse server. Settings of the
request and temporary tables are allowed."""


def refusal(statement: str, read_only: bool) -> str:
    """Return why a client's statement is refused, '' if it is not.

    The words are refused in literals, too, because a parser of ours would differ from the engine's. A client can send
    the literal as a parameter of the query instead.
    """
    if _CLIENT_FILES.search(statement):
        return "INFILE and OUTFILE are refused, also in a literal: send and receive rows by HTTP"
    if read_only and _KILL.search(statement):
        return "KILL is refused by GET, also in a literal: use POST"
    return ""


def write(file: Path) -> None:
    """Write the engine's configuration with these rights."""
    constraints = "".join(f"<{name}><readonly/></{name}>" for name in _FIXED_SETTINGS)
    file.write_text(
        f"""<clickhouse>
<users_config>{file}</users_config>
<profiles><default><constraints>{constraints}</constraints></default></profiles>
<quotas><default/></quotas>
<users><default>
  <password/><profile>default</profile><quota>default</quota><networks><ip>::/0</ip></networks>
  <grants><query>GRANT {_GRANTS}</query></grants>
</default></users>
</clickhouse>
"""
    )
    file.chmod(0o644)  # the engine reads the file as the unprivileged user


def close_default_database(session: Session) -> None:
    """Attach the database `default` with the engine that it has on disk.

    The engine starts with a database `default` in which every name of a file is a table, too.
    """
    query = "SELECT uuid FROM system.databases WHERE name = 'default'"
    identity = session.query(query, "TabSeparated").bytes().decode().strip()
    session.query("DETACH DATABASE default")
    session.query(f"ATTACH DATABASE default UUID '{identity}' ENGINE = Atomic")
