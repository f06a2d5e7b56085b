"""The opaque token by which a list continues where its last page ended.

A cursor holds the order and the `as_of` batch of the first page, so that rows which arrive later neither shift nor
repeat rows. It also holds a digest of the filters, and is refused with other filters.
"""

import base64
from typing import Any

import msgspec
import xxhash

from services.core.dataset import CREATED_AT, ID, Dataset
from services.core.errors import Invalid
from services.core.instants import LAST_INSTANT
from services.core.queries import Filters, ListQuery
from services.core.rows import Row

_LAST_ID = 1 << 53


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """The place after the row `row_id`, whose value of `order_by` is `value`."""

    dataset: str
    filters: int
    order_by: str
    descending: bool
    as_of: int
    value: str | int
    row_id: int

    @staticmethod
    def after(row: Row, query: ListQuery, as_of: int) -> "Cursor":
        dataset, order_by = query.dataset, query.order_by
        value = row[dataset.column_names.index(order_by)]
        filters = _digest(query.filters)
        return Cursor(dataset.name, filters, order_by, query.descending, as_of, value, row[0])

    def encode(self) -> str:
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")

    @staticmethod
    def decode(token: str, dataset: Dataset, filters: Filters) -> "Cursor":
        """Decode a token. Raises Invalid when the query API did not make it, or made it for another query."""
        try:
            text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            cursor = msgspec.msgpack.decode(text, type=Cursor)
        except (ValueError, msgspec.MsgspecError) as error:
            raise Invalid("cursor: broken; take next_cursor of a reply as it is, or leave it out") from error
        if (cursor.dataset, cursor.filters) != (dataset.name, _digest(filters)):
            raise Invalid("cursor: made for other filters; repeat those of its first page, or leave it out")
        if not cursor._is_possible(dataset):
            raise Invalid("cursor: broken; take next_cursor of a reply as it is, or leave it out")
        return cursor

    def _is_possible(self, dataset: Dataset) -> bool:
        """Return whether a row can have this place. Tokens are not signed, so a client may send any values."""
        if self.order_by not in dataset.orderings or not 0 <= self.row_id < _LAST_ID or self.as_of < 0:
            return False
        value: Any = self.value
        if self.order_by == ID.name:
            return bool(value == self.row_id)
        column = CREATED_AT if self.order_by == CREATED_AT.name else dataset.by_name[self.order_by]
        if column.kind == "timestamp":
            return isinstance(value, int) and 0 <= value < LAST_INSTANT
        return isinstance(value, str) and "\x00" not in value


def _digest(filters: Filters) -> int:
    return xxhash.xxh3_64_intdigest(msgspec.json.encode(filters))
