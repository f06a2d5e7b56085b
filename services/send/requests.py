"""Lines of access logs as rows of the dataset `footprints`: one row for each request."""

import re
from collections.abc import Sequence
from datetime import tzinfo

import msgspec

from services.core.dataset import Dataset
from services.send.formats import FORMATS, Format
from services.send.parse import (
    NDJSON,
    Defaults,
    NdjsonParser,
    Parser,
    SingleLines,
    TextParser,
    Unparsed,
    most,
    why_no_row,
)
from services.send.times import Window

FORMATS_OF_REQUESTS = ("combined", "common")
"""The formats whose message is a request line, such as `GET /items/7?page=2 HTTP/1.1`."""

_is_token = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII).fullmatch  # RFC 9110, 5.6.2
_ORIGIN = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*+://[^/?]*+"
)  # of a request to a proxy; it may name a user and a password
_encode = msgspec.json.Encoder().encode


class RequestParser(SingleLines):
    """A Parser. Query strings and the addresses of clients are left out, as the middleware of footprints does.

    Of a target such as `http://user:password@host/path`, only the path is kept. The target of CONNECT, a host, is kept.

    The service is the virtual host of the line; of a line without one, what the options, the format or `origin` say.
    """

    def __init__(self, form: Format, zone: tzinfo, window: Window, defaults: Defaults, origin: str = "") -> None:
        self._text = TextParser(form, zone, window, defaults)
        self._service = defaults.service or form.service or origin

    def row(self, line: str, more: str = "") -> bytes:
        fields, time = self._text.fields(line)
        method, blank, rest = (fields["message"] or "").partition(" ")
        target, _, protocol = rest.rpartition(" ")
        if not blank or not protocol.startswith("HTTP/") or not _is_token(method):
            raise Unparsed("the line has no request such as GET /path HTTP/1.1")
        return _encode(
            {
                "method": method,
                "link": _path(target),
                "footprint_time": time,
                "status": int(fields["status"] or 0),
                "service": fields.get("vhost") or self._service,
            }
        )


def _path(target: str) -> str:
    """Return the path of a request's target, '/' if the target has an origin and no path."""
    if origin := _ORIGIN.match(target):
        return target[origin.end() :].partition("?")[0] or "/"
    path = target.partition("?")[0]
    return path if path.startswith("/") else path.rpartition("@")[2]


def formats_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the formats of which rows of a dataset other than `logs` can be made."""
    return (NDJSON, *FORMATS_OF_REQUESTS) if dataset.name == "footprints" else (NDJSON,)


def detect(dataset: Dataset, lines: Sequence[str], zone: tzinfo, defaults: Defaults) -> tuple[str, int]:
    """Return the format that most of the lines have, and how many have it; ('', 0) if no line has one."""
    counts = {}
    for name in formats_of(dataset):
        parser: Parser = (
            NdjsonParser(defaults) if name == NDJSON else RequestParser(FORMATS[name], zone, Window(), defaults)
        )
        counts[name] = sum(why_no_row(parser, line, dataset.name) is None for line in lines)
    return most(counts)
