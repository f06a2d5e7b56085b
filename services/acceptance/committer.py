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
from services.core.ports import OutgoingMessage
from services.core.rows import RowCodec, Rows, checksum
from services.ledger import batches as ledger_batches
from services.ledger import source_progress
from services.ledger.identity import ledger_id
from services.postgres.clock import now_microseconds
from services.postgres.connection import PIPELINE, connect
from services.runtime import logs, metrics
from services.stores import postgres

RESOLVE_SECONDS = 20  # how long PostgreSQL is queried for the outcome of an ambiguous COMMIT
_log = logs.get("committer")


@dataclass(frozen=True, slots=True)
class Submission:
    """One request's rows, in chunks of which none is empty. `key` is its Idempotency-Key, '' when it has none.

    `ledger_id`: the ledger that the rows are meant for, '' for any. A client with a journal sends it.
    `source`: the messages of a foreign topic that had the rows; the offsets of the source advance in the transaction
    that writes the rows.
    """

    chunks: list[Rows]
    key: str = ""
    body_hash: bytes = b""
    ledger_id: str = ""
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
OnCommitted = Callable[[Batch, list[OutgoingMessage]], None]
"""Called after the commit with each batch and its messages. Does not block."""

_Written = tuple[Batch, list[OutgoingMessage]]
"""A batch that the transaction has written, and its messages."""


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

        The caller passes a submission with a source in a group of its own. Its outcome is Fenced if another process
        has accepted the messages already; then nothing is stored.
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
        outcomes, written = self._run_transaction(dataset, group)
        for batch, messages in written:
            self._on_committed(batch, messages)
            metrics.histogram(metric_names.BATCH_ROWS, dataset.name).observe(batch.rows)
        metrics.histogram(metric_names.COMMIT_SECONDS, dataset.name).observe(time.perf_counter() - started)
        return outcomes

    def _run_transaction(
        self, dataset: Dataset, group: Sequence[Submission]
    ) -> tuple[list[Outcome], Sequence[_Written]]:
        """Return the outcome of each submission, and the batches of those that the transaction has written."""
        xid, committing = "", False
        written: list[_Written] = []
        try:
            with self._connected().cursor() as cursor:
                cursor.execute("BEGIN")
                outcomes = self._outcomes_without_write(cursor, dataset, group)
                places = [place for place, outcome in enumerate(outcomes) if outcome is None]
                new = [group[place] for place in places]
                for source in filter(None, (submission.source for submission in new)):
                    source_progress.advance(cursor, source)
                if new:
                    total = sum(submission.rows for submission in new)
                    drawn = ledger_batches.draw_ids(cursor, -(-total // self._batch_rows))
                    xid = drawn.xid
                    written = self._write_batches(cursor, dataset, new, drawn)
                    accepted = self._store_requests(cursor, dataset, new, written)
                    for place, outcome in zip(places, accepted, strict=True):
                        outcomes[place] = outcome
                committing = True
                cursor.execute("COMMIT")
        except (psycopg.DataError, psycopg.errors.UndefinedTable):
            self._rollback()
            raise
        except psycopg.Error as error:
            self.close()
            if not (committing and written and self._was_committed(xid, written[-1][0])):
                raise StoreDown("postgres", str(error).strip() or type(error).__name__) from error
        except BaseException:
            self.close()  # never leave a transaction open for the next group
            raise
        return [outcome for outcome in outcomes if outcome is not None], written

    def _outcomes_without_write(
        self, cursor: psycopg.Cursor[Any], dataset: Dataset, group: Sequence[Submission]
    ) -> list[Outcome | None]:
        """Return the outcome of each submission that must not be written (other ledger, repeated key); else None."""
        refusals = _for_other_ledger(cursor, group)
        keys = sorted({s.key for s in group if s.key})
        if not keys:
            return refusals
        is_locked = ledger_batches.lock_keys(cursor, keys)
        known = ledger_batches.known_requests(cursor, [key for key in keys if is_locked[key]])
        outcomes: list[Outcome | None] = []
        running: set[str] = set()
        for submission, refusal in zip(group, refusals, strict=True):
            key = submission.key
            if refusal or not key:
                outcomes.append(refusal)
            elif not is_locked[key] or key in running:
                outcomes.append(Conflict(f"the first request with Idempotency-Key {key!r} is still running"))
            elif key in known:
                outcomes.append(_outcome_of_repeat(known[key], dataset, submission))
            else:
                running.add(key)
                outcomes.append(None)
        return outcomes

    def _write_batches(
        self, cursor: psycopg.Cursor[Any], dataset: Dataset, new: Sequence[Submission], drawn: ledger_batches.DrawnIds
    ) -> list[_Written]:
        """Write the rows and the ledger rows of the batches, and make the messages."""
        created_at = drawn.created_at
        slot, codec = self._slot(), self._codecs[dataset.name]
        chunks = chain.from_iterable(submission.chunks for submission in new)
        written = []
        with cursor.copy(postgres.copy_statement(dataset, created_at // DAY)) as copy:
            copy.set_types(postgres.copy_types(dataset))
            for rows, batch_id in zip(Rows.batches(chunks, self._batch_rows), drawn.batch_ids, strict=True):
                for values in postgres.copy_rows(dataset, rows, batch_id, created_at):
                    copy.write_row(values)
                # PostgreSQL works on what was just sent while this process makes the messages.
                lines = codec.encode(rows.tuples(batch_id, created_at))
                batch = Batch(batch_id, slot, dataset.name, len(lines), checksum(lines), created_at)
                messages = kafka_value.encode(dataset, batch_id, created_at, rows, lines, self._partitions)
                written.append((batch, messages))
        ledger_batches.insert(cursor, [batch for batch, _ in written])
        return written

    def _store_requests(
        self,
        cursor: psycopg.Cursor[Any],
        dataset: Dataset,
        new: Sequence[Submission],
        written: Sequence[_Written],
    ) -> list[Outcome]:
        """Store the request keys of the new submissions, and return the outcome of each, in order.

        Every batch in `written` except the last has `batch_rows` rows. So row n of the new submissions is in batch
        number n // `batch_rows`.
        """
        outcomes: list[Outcome] = []
        requests = []
        row = 0
        for submission in new:
            first = written[row // self._batch_rows][0].batch_id
            row += submission.rows
            last = written[(row - 1) // self._batch_rows][0].batch_id
            outcomes.append(Accepted(first, submission.rows))
            if submission.key:
                requests.append(
                    ledger_batches.KeyedRequest(
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
        """Return the outcome of an ambiguous COMMIT, by asking PostgreSQL. Raises StoreDown if it stays unknown."""
        retrying = stamina.RetryingCaller(
            attempts=None, timeout=RESOLVE_SECONDS, wait_initial=0.1, wait_max=0.5, wait_jitter=0.0
        )
        try:
            committed = retrying(StoreDown, self._outcome_of, xid, batch)
        except StoreDown as error:
            raise StoreDown(
                "postgres", "the connection was lost during COMMIT; repeat the request with its Idempotency-Key"
            ) from error
        _log.warning("ambiguous commit resolved", xid=xid, batch=batch.batch_id, committed=committed)
        return committed

    def _outcome_of(self, xid: str, batch: Batch) -> bool:
        """Return whether the batch was committed. Raises StoreDown if that is unknown, or the transaction runs."""
        try:
            committed = ledger_batches.committed(self._connected(), xid, batch)
        except StoreDown:
            self.close()
            raise
        if committed is None:
            raise StoreDown("postgres", f"transaction {xid} has not ended")
        return committed


def _for_other_ledger(cursor: psycopg.Cursor[Any], group: Sequence[Submission]) -> list[Outcome | None]:
    """Return the error of each submission that is meant for another ledger, and None for the others."""
    if not any(submission.ledger_id for submission in group):
        return [None] * len(group)
    own_id = str(ledger_id(cursor.connection))
    return [
        OtherLedger(f"the rows are meant for ledger {submission.ledger_id[:36]!r}, and this is ledger {own_id}")
        if submission.ledger_id not in ("", own_id)
        else None
        for submission in group
    ]


def _outcome_of_repeat(known: ledger_batches.KeyedRequest, dataset: Dataset, submission: Submission) -> Outcome:
    if known.body_hash != submission.body_hash or known.dataset != dataset.name:
        return KeyReused(f"Idempotency-Key {known.key!r} was used for another body")
    return Accepted(known.first_batch, known.rows, duplicate=True)
