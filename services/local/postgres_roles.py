"""Who may do what in the stack's PostgreSQL: the role of all processes is no superuser, and needs a password.

The superuser `postgres` has no password, so that no client can log in as superuser. The set-up runs in the server's
single-user mode, before the server listens. A folder of a release before this one, in which everybody was the superuser
`logpipe` without a password, is converted.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from services.local import unprivileged
from services.local.passwords import POSTGRES_ROLE
from services.local.program import write_private

SUPERUSER = "postgres"
DATABASE = "logpipe"

Run = Callable[..., None]
"""Run a program of PostgreSQL on a data folder: folder, program, arguments, stdin."""

_HBA = "# Written at each start of the stack.\nhost all all 127.0.0.1/32 scram-sha-256\n"

_FIRST_SUPERUSER, _FIRST_OID = 10, 16384  # of PostgreSQL: the role that initdb makes; the first object that it does not

# A superuser can be renamed by another superuser only.
_SET_UP = f"""
DO $set_up$
DECLARE statement text;
BEGIN
    IF (SELECT rolname FROM pg_roles WHERE oid = {_FIRST_SUPERUSER}) <> '{SUPERUSER}' THEN
        CREATE ROLE renaming SUPERUSER;
        SET SESSION AUTHORIZATION renaming;
        ALTER ROLE {POSTGRES_ROLE} RENAME TO {SUPERUSER};
        SET SESSION AUTHORIZATION {SUPERUSER};
        DROP ROLE renaming;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{POSTGRES_ROLE}') THEN
        CREATE ROLE {POSTGRES_ROLE} LOGIN CREATEDB;
    END IF;
    GRANT pg_checkpoint TO {POSTGRES_ROLE};  -- for the benchmarks
    ALTER DATABASE {DATABASE} OWNER TO {POSTGRES_ROLE};
    FOR statement IN
        SELECT format('ALTER %s %s OWNER TO {POSTGRES_ROLE}', kind, name) FROM (
            SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                   ELSE 'TABLE' END, oid::regclass::text, relowner, oid FROM pg_class
            WHERE relkind IN ('r', 'p', 'v', 'm', 'S') AND relpersistence <> 't'
              AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid
                              AND relkind = 'S' AND deptype IN ('a', 'i'))
            UNION ALL SELECT 'ROUTINE', oid::regprocedure::text, proowner, oid FROM pg_proc
            UNION ALL SELECT 'TYPE', oid::regtype::text, typowner, oid FROM pg_type WHERE typtype IN ('d', 'e', 'r')
            UNION ALL SELECT 'SCHEMA', quote_ident(nspname), nspowner, oid FROM pg_namespace
            WHERE nspname !~ '^pg_'
        ) AS object (kind, name, owner, oid) WHERE owner = {_FIRST_SUPERUSER} AND oid >= {_FIRST_OID}
    LOOP
        EXECUTE statement;
    END LOOP;
END $set_up$;
"""  # noqa: S608 - of constants


def set_up(data: Path, password: str, run: Run) -> None:
    """Give the role its rights and its password, unless both are as they should be. The server must not run."""
    _write(data / "pg_hba.conf", _HBA)
    marker = data / "logpipe.roles"
    done = hashlib.sha256((_SET_UP + password).encode()).hexdigest()
    if marker.exists() and marker.read_text() == done:
        return
    # An error does not write the statement, with its password, to the log.
    options = ("--single", "-j", "-c", "log_min_error_statement=panic", "-D", str(data), DATABASE)
    run(data, "postgres", *options, stdin=f"{_SET_UP}ALTER ROLE {POSTGRES_ROLE} PASSWORD '{password}';\n\n")
    _write(marker, done)


def _write(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)  # the folder is the server's, which might have made a link of this name
    write_private(part, text)
    unprivileged.hand_over(part)
    part.replace(file)
