"""Every error that the pipeline raises on purpose, with the HTTP status of its reply.

    LogpipeError                 500
    ├── Malformed                400  the body is not what its content type says
    │   └── MalformedLine        400  … because of this line
    ├── Unauthorized             401
    ├── NotFound                 404  there is no such resource
    ├── RequestTimeout           408  the body did not arrive in time
    ├── Conflict                 409  the first request with this key still runs
    ├── OtherLedger              412  the rows are meant for a ledger that is not the one here
    ├── TooLarge                 413
    ├── UnsupportedMedia         415
    ├── Invalid                  422  well-formed, but not acceptable
    │   ├── InvalidRow           422  … because of this field of this row
    │   ├── KeyReused            422  … the Idempotency-Key was used for another body
    │   └── ResultTooLarge       422  the result of a query exceeds the limit of one reply
    ├── Backpressure             503  full; come back after `retry_after` seconds
    │   └── StoreBusy            503  … because the limit of running and waiting queries of this store is reached
    ├── StoreDown                503  a store (or stream) is unreachable, or failed in a way that a retry may cure
    │   └── Unreachable          503  … because there was no connection: no byte of the request was sent
    ├── Undelivered              503  a request was repeated until the client's patience ran out
    ├── QueryTimeout             504  a query exceeded its time limit and was cancelled in the store
    ├── QueryCancelled           503  a query was ended because its client has left
    ├── RowRejected              500  a store rejected one row of a block
    ├── Fenced                   500  another process owns this slot or partition now; stop
    └── NeedsOperator            500  to go on could lose or double rows; the message says what to do

Adapters translate their driver's errors into these, so that nothing above an adapter sees a driver's error. There is
one exception: the committer has to tell PostgreSQL's own errors apart (a refused value, a missing partition, an
ambiguous COMMIT), so the functions that it calls inside its transaction do not translate them.
"""

UNEXPECTED = "unexpected error; the log of this process has it"
"""The detail of the reply to a request that met a bug: the traceback is for the log only."""

MAX_SHOWN_CHARACTERS = 100
"""Characters of a name or a value of a client that an error repeats."""


def shown(text: str) -> str:
    """Return a client's text as an error repeats it: a long text is cut."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


class LogpipeError(Exception):
    status = 500
    title = "Internal error"


class Malformed(LogpipeError):
    status = 400
    title = "Malformed request"


class MalformedLine(Malformed):
    """Line `index` of a request (0-based, blank lines not counted) is not JSON."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"row {index}: {reason}")
        self.index = index
        self.reason = reason


class Unauthorized(LogpipeError):
    status = 401
    title = "Unauthorized"


class NotFound(LogpipeError):
    status = 404
    title = "Not found"


class RequestTimeout(LogpipeError):
    status = 408
    title = "Request timeout"


class Conflict(LogpipeError):
    status = 409
    title = "Conflict"


class OtherLedger(LogpipeError):
    status = 412
    title = "Another ledger"


class TooLarge(LogpipeError):
    status = 413
    title = "Too large"


class UnsupportedMedia(LogpipeError):
    status = 415
    title = "Unsupported media"


class Invalid(LogpipeError):
    status = 422
    title = "Invalid request"


class InvalidRow(Invalid):
    """Row `index` (0-based) of a request is refused because of `field` ('' when it is the row as a whole)."""

    title = "Invalid row"

    def __init__(self, index: int, field: str, reason: str) -> None:
        self.index = index
        self.field = shown(field)
        self.reason = reason
        where = f"row {index}, field {self.field!r}" if field else f"row {index}"
        super().__init__(f"{where}: {reason}")


class KeyReused(Invalid):
    """The rows of another body are stored under this Idempotency-Key, and nothing of this one is."""

    title = "Idempotency-Key reused"


class ResultTooLarge(Invalid):
    title = "Result too large"


class Backpressure(LogpipeError):
    status = 503
    title = "Overloaded"

    def __init__(self, detail: str, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class StoreBusy(Backpressure):
    """The limit of running and waiting queries of `store` is reached."""

    def __init__(self, store: str, detail: str) -> None:
        super().__init__(f"{store}: {detail}")
        self.store = store


class StoreDown(LogpipeError):
    """`store` (a store, the ledger or a stream) cannot be reached, or failed in a way that a retry may cure."""

    status = 503
    title = "Store down"

    def __init__(self, store: str, detail: str) -> None:
        super().__init__(f"{store}: {detail}")
        self.store = store


class Unreachable(StoreDown):
    """There was no connection to `store`: no byte of the request was sent."""


class Undelivered(LogpipeError):
    """A request was repeated until the client's patience ran out. `in_doubt`: its rows may be stored nevertheless."""

    status = 503
    title = "Undelivered"

    def __init__(self, detail: str, *, in_doubt: bool) -> None:
        super().__init__(detail)
        self.in_doubt = in_doubt


class QueryTimeout(LogpipeError):
    status = 504
    title = "Query timeout"

    def __init__(self, store: str, seconds: float) -> None:
        super().__init__(
            f"{store}: no result within {seconds:.3g} s; the query was cancelled: ask for fewer rows or smaller pages"
        )
        self.store = store


class QueryCancelled(LogpipeError):
    status = 503
    title = "Query cancelled"


class RowRejected(LogpipeError):
    """A store will never take row `row` (0-based) of block `block` (0-based); no row of the blocks was stored.

    `row` is None when the store does not say which row it rejects. `near`: the number of the row to check first,
    counted from 0 through all blocks. Blank lines make the number too low.
    """

    title = "Row rejected"

    def __init__(self, row: int | None, reason: str, block: int = 0, near: int | None = None) -> None:
        super().__init__(reason if row is None else f"row {row}: {reason}")
        self.row = row
        self.reason = reason
        self.block = block
        self.near = near


class Fenced(LogpipeError):
    title = "Fenced"


class NeedsOperator(LogpipeError):
    title = "Needs an operator"
