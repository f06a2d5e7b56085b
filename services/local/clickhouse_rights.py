"""What clients of the embedded ClickHouse engine may do: its user `default` is granted what the pipeline needs.

Everything that reaches files, URLs, other servers or programs is not granted: the table functions and engines `file`,
`url`, `s3`, `remote`, `mysql`, ...; dictionaries; named collections; backups; users; SYSTEM. Settings that name a file
or an address have a fixed value.

For two kinds of statement the engine asks for no right, and `refusal` looks for their words: INFILE and OUTFILE, which
read and write files of the client, because client and engine are one process here; and KILL of queries of the own user,
also in a session that is read-only. What is left, the function `file`, is stopped by the process's confinement.
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
"""The setting of a request that must change nothing, as a ClickHouse server has it for GET: settings of the request and
temporary tables are allowed."""


def refusal(statement: str, read_only: bool) -> str:
    """Why a client's statement is refused, '' if it is not.

    The words are refused in literals, too: a second parser of the engine's language would differ from the engine's. A
    literal can be a parameter of the query instead.
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
    """Attach the database `default` as what it is on the disk.

    The engine starts with a database `default` in which every name of a file is a table, too.
    """
    query = "SELECT uuid FROM system.databases WHERE name = 'default'"
    identity = session.query(query, "TabSeparated").bytes().decode().strip()
    session.query("DETACH DATABASE default")
    session.query(f"ATTACH DATABASE default UUID '{identity}' ENGINE = Atomic")
