"""The errors of the embedded ClickHouse, with ClickHouse's codes and the HTTP status of each."""

import re

_CODE = re.compile(r"Code: (\d+)\.")
NOT_IMPLEMENTED, BAD_ARGUMENTS, CANNOT_OPEN_FILE, TOO_MANY_BYTES, ACCESS_DENIED = 48, 36, 76, 307, 497
TOO_MANY_QUERIES, SOCKET_TIMEOUT = 202, 209
_STD_EXCEPTION = 1001
_NOT_FOUND_CODES = {46, 47, 50, 60, 81, 115}
_FORBIDDEN_CODES = {164, ACCESS_DENIED}
_BAD_REQUEST_CODES = {6, 26, 27, 33, BAD_ARGUMENTS, 38, 41, 53, 62, 72, 117, 386, 457}


class QueryError(Exception):
    """The engine, or the shim, refuses a request; `code` is ClickHouse's."""

    def __init__(self, message: str, code: int | None = None) -> None:
        found = _CODE.search(message)
        self.code = code or (int(found[1]) if found else _STD_EXCEPTION)
        super().__init__(message if found else f"Code: {self.code}. DB::Exception: {message}")

    @property
    def status(self) -> int:
        """The HTTP status of the reply."""
        by_status = (
            (403, _FORBIDDEN_CODES),
            (404, _NOT_FOUND_CODES),
            (408, {SOCKET_TIMEOUT}),
            (413, {TOO_MANY_BYTES}),
            (503, {TOO_MANY_QUERIES}),
            (400, _BAD_REQUEST_CODES),
        )
        return next((status for status, codes in by_status if self.code in codes), 500)
