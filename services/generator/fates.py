"""What became of the rows of one request.

acked          the ingest API replied 200: the rows are stored
refused        the rows are not stored: a 4xx, or ingest was full or unreachable until the client's patience ran out
indeterminate  the outcome is unknown: a lost connection, a timeout or a server error that no later attempt settled
"""

from dataclasses import dataclass
from typing import Literal

from services.core.dataset import Dataset
from services.core.errors import LogpipeError, Undelivered
from services.ingest_client.client import IngestClient

Fate = Literal["acked", "refused", "indeterminate"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`detail`: the last error, '' when the rows are acked. `batch_id`: of the rows, 0 unless they are acked."""

    fate: Fate
    attempts: int
    detail: str = ""
    batch_id: int = 0


async def settle(client: IngestClient, dataset: Dataset, body: bytes, key: str) -> Outcome:
    """Send NDJSON `body` until its fate is known or the client's patience has run out. Raises nothing but bugs."""
    failures: list[LogpipeError] = []
    try:
        accepted = await client.send(dataset, body, key, failures.append)
    except LogpipeError as error:
        in_doubt = isinstance(error, Undelivered) and error.in_doubt
        return Outcome("indeterminate" if in_doubt else "refused", len(failures) + 1, f"{error.status}: {error}")
    return Outcome("acked", len(failures) + 1, batch_id=accepted.batch_id)
