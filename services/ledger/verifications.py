"""What `logpipe verify` last found in each store, kept so that it can be seen after the command has ended.

`verify` records it, and the query API serves it as metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.postgres.connection import Connection, translated

# A sample that finds nothing does not prove that rows which an earlier verification missed are back.
_RECORD = """
    INSERT INTO verifications AS v (store, dataset, missing, extra, duplicated, altered, batches)
    VALUES (%(store)s, %(dataset)s, %(missing)s, %(extra)s, %(duplicated)s, %(altered)s, %(batches)s)
    ON CONFLICT (store, dataset) DO UPDATE SET
        missing = CASE WHEN %(complete)s THEN excluded.missing ELSE greatest(v.missing, excluded.missing) END,
        extra = CASE WHEN %(complete)s THEN excluded.extra ELSE greatest(v.extra, excluded.extra) END,
        duplicated = CASE WHEN %(complete)s THEN excluded.duplicated
            ELSE greatest(v.duplicated, excluded.duplicated) END,
        altered = CASE WHEN %(compared_all)s THEN excluded.altered ELSE greatest(v.altered, excluded.altered) END,
        batches = excluded.batches, ended_at = now()"""


@dataclass(frozen=True, slots=True)
class Verified:
    """Rows of one dataset in one store that differ from the ledger, and the number of batches that were looked at.

    Rows that the store had not loaded yet are not missing. `altered`: the rows of batches whose contents differ.
    """

    store: str
    dataset: str
    missing: int
    extra: int
    duplicated: int
    altered: int
    batches: int


def record(connection: Connection, found: Sequence[Verified], *, complete: bool, compared_all: bool) -> None:
    """Record what a verification found. Raises StoreDown.

    `complete`: all batches were looked at, so a difference that is not found again has ended. `compared_all`: the
    contents of all these batches were compared, too. Otherwise a difference that was recorded before is kept.
    """
    values = [
        {
            "store": one.store,
            "dataset": one.dataset,
            "missing": one.missing,
            "extra": one.extra,
            "duplicated": one.duplicated,
            "altered": one.altered,
            "batches": one.batches,
            "complete": complete,
            "compared_all": compared_all,
        }
        for one in found
    ]
    with translated(), connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(_RECORD, values)


def recorded(connection: Connection) -> list[tuple[Verified, float]]:
    """Return what was last found in each store and dataset, and how many seconds ago. Raises StoreDown."""
    query = """SELECT store, dataset, missing, extra, duplicated, altered, batches,
                      extract(epoch FROM greatest(clock_timestamp() - ended_at, interval '0'))::float8
               FROM verifications"""
    with translated():
        return [(Verified(*row[:-1]), row[-1]) for row in connection.execute(query)]
