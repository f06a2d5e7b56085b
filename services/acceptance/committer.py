"""Group commit: requests of one dataset share one PostgreSQL transaction. The API replies to them after the commit.

    BEGIN; look up the ledger id and the request keys; advance the offsets of a source; take the transaction id and the
    batch ids; COPY rows; insert the ledger rows and the request keys; COMMIT

If PostgreSQL refuses a value that our validation let through, the group is committed again request by request, so that
only the request with the value fails.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import psycopg
import stamina

from services.core import kafka_value, metric_names
from services.core.dataset import Dataset
from services.core.errors import Conflict, Invalid, KeyReused, LogpipeError, OtherLedger, StoreDown
from services.core.instants import DAY
from services.core.ledger import Batch, SourceAdvance
from services.core.ports import Outgoing
from services.core.rows import RowCodec, Rows, checksum
from services.ledger import batches as ledger_batches
from services.ledger import source_progress
from services.ledger.identity import ledger_id
from services.postgres.clock import now_microseconds
from services.postgres.connection import PIPELINE, connect
from services.runtime import logs, metrics
from services.stores import postgres

SETTLE_SECONDS = 20  # how long PostgreSQL is asked for the outcome of an ambiguous COMMIT
_log = logs.get("committer")


@dataclass(frozen=True, slots=True)
class Submission:
    """One request's rows, in chunks of which none is empty. `key` is its Idempotency-Key, '' when it has none.

    `ledger` is the id of the ledger that the rows are meant for, '' for any. A client with a journal sends it.
    `source`: the messages of a foreign topic that the rows were in; its offsets advance in the rows' transaction.
    """

    chunks: list[Rows]
    key: str = ""
    body_hash: bytes = b""
    ledger: str = ""
    source: SourceAdvance | None = None

    @property
    def rows(self) -> int:
        return sum(chunk.count for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Accepted:
    batch_id: int
    rows: int
    duplicate: bool = False


Outcome = Accepted | LogpipeError
OnCommitted = Callable[[Batch, list[Outgoing]], None]
"""Called after the commit with each batch and its messages. Does not block."""


class Committer:
    """One PostgreSQL connection that commits groups, one at a time; used by one thread at a time.

    `slot` returns the slot of new batches.
    """

    def __init__(
        self,
        url: str,
        codecs: dict[str, RowCodec],
        slot: Callable[[], int],
        on_committed: OnCommitted,
        batch_rows: int,
        partitions: int,
        session_name: str = PIPELINE,
    ) -> None:
        self._url = url
        self._session_name = session_name
        self._codecs = codecs
        self._slot = slot
        self._on_committed = on_committed
        self._batch_rows = batch_rows
        self._partitions = partitions
        self._connection: psycopg.Connection[Any] | None = None

    def commit(self, dataset: Dataset, group: Sequence[Submission]) -> list[Outcome]:
        """Return the outcome of each submission, in order. A LogpipeError is an outcome, and is not raised.

        The caller passes a submission with a source in a group of its own. Its outcome may be Fenced: then another
        process has taken the messages, and nothing is stored.
        """
        try:
            try:
                return self._commit(dataset, group)
            except psycopg.errors.UndefinedTable:  # PostgreSQL's clock has jumped beyond the partitions made ahead
                connection = self._connected()
                postgres.ensure_partitions(connection, dataset, now_microseconds(connection) // DAY, 1)
                return self._commit(dataset, group)
        except psycopg.DataError as error:
            if len(group) == 1:
                reason = str(error).strip().splitlines()[0]
                return [Invalid(f"PostgreSQL refuses a value of this request: {reason}")]
            _log.warning("group commit failed, committing each request", requests=len(group))
            return [outcome for submission in group for outcome in self.commit(dataset, [submission])]
        except psycopg.errors.UndefinedTable as error:
            return [StoreDown("postgres", str(error).strip())] * len(group)
        except LogpipeError as error:
            return [error] * len(group)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _commit(self, dataset: Dataset, group: Sequence[Submission]) -> list[Outcome]:
        started = time.perf_counter()
        xid, committing = "", False
        made: list[tuple[Batch, list[Outgoing]]] = []
        try:
            with self._connected().cursor() as cursor:
                cursor.execute("BEGIN")
                outcomes = self._decided_already(cursor, dataset, group)
                fresh = [index for index, outcome in enumerate(outcomes) if outcome is None]
                for source in filter(None, (group[index].source for index in fresh)):
                    source_progress.advance(cursor, source)
                if fresh:
                    total = sum(group[index].rows for index in fresh)
                    begun = ledger_batches.begin(cursor, -(-total // self._batch_rows))
                    xid = begun.xid
                    made = self._write(cursor, dataset, [group[index] for index in fresh], begun)
                    for index, outcome in zip(
                        fresh, self._store_requests(cursor, dataset, group, fresh, made), strict=True
                    ):
                        outcomes[index] = outcome
                committing = True
                cursor.execute("COMMIT")
        except (psycopg.DataError, psycopg.errors.UndefinedTable):
            self._rollback()
            raise
        except psycopg.Error as error:
            self.close()
            if not (committing and made and self._was_committed(xid, made[-1][0])):
                raise StoreDown("postgres", str(error).strip() or type(error).__name__) from error
        except BaseException:
            self.close()  # never leave a transaction open for the next group
            raise
        for batch, outgoing in made:
            self._on_committed(batch, outgoing)
            metrics.histogram(metric_names.BATCH_ROWS, dataset.name).observe(batch.rows)
        metrics.histogram(metric_names.COMMIT_SECONDS, dataset.name).observe(time.perf_counter() - started)
        return [outcome for outcome in outcomes if outcome is not None]

    def _decided_already(
        self, cursor: psycopg.Cursor[Any], dataset: Dataset, group: Sequence[Submission]
    ) -> list[Outcome | None]:
        """Return the outcome of each submission that must not be written (other ledger, repeated key); else None."""
        refused = _refused(cursor, group)
        keys = sorted({s.key for s in group if s.key})
        if not keys:
            return refused
        held = ledger_batches.lock_keys(cursor, keys)
        known = ledger_batches.known_requests(cursor, [key for key in keys if held[key]])
        outcomes: list[Outcome | None] = []
        running: set[str] = set()
        for submission, refusal in zip(group, refused, strict=True):
            key = submission.key
            if refusal or not key:
                outcomes.append(refusal)
            elif not held[key] or key in running:
                outcomes.append(Conflict(f"the first request with Idempotency-Key {key!r} is still running"))
            elif key in known:
                outcomes.append(_repeated(known[key], dataset, submission))
            else:
                running.add(key)
                outcomes.append(None)
        return outcomes

    def _write(
        self, cursor: psycopg.Cursor[Any], dataset: Dataset, group: Sequence[Submission], begun: ledger_batches.Begun
    ) -> list[tuple[Batch, list[Outgoing]]]:
        created_at = begun.created_at
        slot, codec = self._slot(), self._codecs[dataset.name]
        chunks = chain.from_iterable(submission.chunks for submission in group)
        made = []
        with cursor.copy(postgres.copy_statement(dataset, created_at // DAY)) as copy:
            copy.set_types(postgres.copy_types(dataset))
            for rows, batch_id in zip(Rows.batches(chunks, self._batch_rows), begun.batch_ids, strict=True):
                for values in postgres.copy_rows(dataset, rows, batch_id, created_at):
                    copy.write_row(values)
                # PostgreSQL works on what was just sent while this process makes the messages.
                lines = codec.encode(rows.tuples(batch_id, created_at))
                record = Batch(batch_id, slot, dataset.name, len(lines), checksum(lines), created_at)
                made.append((record, kafka_value.encode(dataset, batch_id, created_at, rows, lines, self._partitions)))
        ledger_batches.insert(cursor, [record for record, _ in made])
        return made

    def _store_requests(
        self,
        cursor: psycopg.Cursor[Any],
        dataset: Dataset,
        group: Sequence[Submission],
        fresh: Sequence[int],
        made: Sequence[tuple[Batch, list[Outgoing]]],
    ) -> list[Outcome]:
        """Store the request keys of the fresh submissions, and return the outcome of each, in order.

        Every batch in `made` except the last has `batch_rows` rows. So row n of the fresh submissions is in batch
        number n // `batch_rows`.
        """
        outcomes: list[Outcome] = []
        requests = []
        row = 0
        for index in fresh:
            submission = group[index]
            first = made[row // self._batch_rows][0].batch_id
            row += submission.rows
            last = made[(row - 1) // self._batch_rows][0].batch_id
            outcomes.append(Accepted(first, submission.rows))
            if submission.key:
                requests.append(
                    ledger_batches.Request(
                        submission.key, submission.body_hash, dataset.name, first, last, submission.rows
                    )
                )
        if requests:
            ledger_batches.insert_requests(cursor, requests)
        return outcomes

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._url, name=self._session_name)
        return self._connection

    def _rollback(self) -> None:
        try:
            if self._connection is not None:
                self._connection.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def _was_committed(self, xid: str, batch: Batch) -> bool:
        """Settle an ambiguous COMMIT by asking PostgreSQL. Raises StoreDown when the outcome stays unknown."""
        retrying = stamina.RetryingCaller(
            attempts=None, timeout=SETTLE_SECONDS, wait_initial=0.1, wait_max=0.5, wait_jitter=0.0
        )
        try:
            committed = retrying(StoreDown, self._outcome_of, xid, batch)
        except StoreDown as error:
            raise StoreDown(
                "postgres", "the connection was lost during COMMIT; repeat the request with its Idempotency-Key"
            ) from error
        _log.warning("ambiguous commit settled", xid=xid, batch=batch.batch_id, committed=committed)
        return committed

    def _outcome_of(self, xid: str, batch: Batch) -> bool:
        """Return whether it was committed. Raises StoreDown if PostgreSQL is unreachable, or the transaction runs."""
        try:
            committed = ledger_batches.committed(self._connected(), xid, batch)
        except StoreDown:
            self.close()
            raise
        if committed is None:
            raise StoreDown("postgres", f"transaction {xid} has not ended")
        return committed


def _refused(cursor: psycopg.Cursor[Any], group: Sequence[Submission]) -> list[Outcome | None]:
    """Return the error of each submission that is meant for another ledger, and None for the others."""
    if not any(submission.ledger for submission in group):
        return [None] * len(group)
    there = str(ledger_id(cursor.connection))
    return [
        OtherLedger(f"the rows are meant for ledger {submission.ledger[:36]!r}, and this is ledger {there}")
        if submission.ledger not in ("", there)
        else None
        for submission in group
    ]


def _repeated(known: ledger_batches.Request, dataset: Dataset, submission: Submission) -> Outcome:
    if known.body_hash != submission.body_hash or known.dataset != dataset.name:
        return KeyReused(f"Idempotency-Key {known.key!r} was used for another body")
    return Accepted(known.first_batch, known.rows, duplicate=True)
