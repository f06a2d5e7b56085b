"""Deletes many rows, a few in each transaction, so that locks are short, and replicas and VACUUM keep up."""

from collections.abc import Sequence
from typing import Any, LiteralString

from services.postgres.connection import Connection, translated


def delete_in_chunks(connection: Connection, statement: LiteralString, values: Sequence[Any], most: int) -> int:
    """Repeat a DELETE that deletes up to `most` rows until it deletes fewer; return how many it deleted in all.

    The last parameter of `statement`, after `values`, is `most`. Raises StoreDown.
    """
    deleted = 0
    with translated():
        while True:
            done = connection.execute(statement, (*values, most)).rowcount
            deleted += done
            if done < most:
                return deleted
