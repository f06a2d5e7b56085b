"""A footprint: what the middleware notes of a request, and the message that the background thread makes of it.

Nothing of a request is noted but its method, path, route, status and time: no query string, no header, no body, no
address of a client.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from fnmatch import translate
from json import JSONEncoder
from typing import Any
from zoneinfo import ZoneInfo

from request_footprints.producer import Message

Note = tuple[float, str, str, int, float, object, object, str, object]
"""Start in epoch seconds, method, path, status, duration in seconds, route object, FastAPI's scope, the part of the
path that mounts matched, and the outermost router.

It is a plain tuple, because a named one takes ten times as long to make, on the event loop. The path is cut to
`path_bound` and one character more, so that a note is small and the patterns see that the path was longer. Method and
mounted part are cut to one character more than their bounds. With the default `max_link` a note takes at most 10 KB,
and 10,000 notes take 100 MB.
"""

MAX_PATH = 2_048  # characters of a path that the patterns see; a character takes up to 4 bytes

MAX_METHOD = 16  # characters; HTTP allows any
MAX_MOUNTED = 256  # characters of the path that mounts matched
MAX_ROUTE = 256  # characters
_CUT = "…"
_UNSTORABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and lone surrogates, which PostgreSQL or UTF-8 cannot represent."""

_TOKEN = re.compile(r"\[!?\]?[^]]*\]|.", re.DOTALL)
"""A wildcard or a character of a pattern; `[*]` is one token."""

_json = JSONEncoder(ensure_ascii=False).encode


def path_bound(max_link: int) -> int:
    """Return how many characters of a path a note keeps, and the patterns see."""
    return max(MAX_PATH, max_link)


class Selection:
    """Which paths are recorded.

    A path longer than `bound` is known by its beginning only. Such a path is recorded if an `include` pattern can match
    it by its text up to the first `*`, unless an `exclude` pattern that ends in `*` matches the beginning.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str], bound: int) -> None:
        self._bound = bound
        self._included = _any_of(include)
        self._excluded = _any_of(exclude)
        self._long_included = _any_of([start for each in include if (start := _up_to_star(each)) is not None])
        self._long_excluded = _any_of([each for each in exclude if _TOKEN.findall(each)[-1:] == ["*"]])

    def takes(self, path: str) -> bool:
        if len(path) > self._bound:
            return self._long_included.match(path) is not None and self._long_excluded.match(path) is None
        return self._included.match(path) is not None and self._excluded.match(path) is None


class Encoder:
    """Makes the messages of one service."""

    def __init__(self, service: str, zone: ZoneInfo, max_link: int) -> None:
        self._service = _json(_storable(service))
        self._zone = zone
        self._max_link = max_link
        self._second = -1
        self._before_fraction = self._offset = ""

    def message(self, note: Note) -> Message:
        started, method, path, status, seconds, route, fastapi, mounted, router = note
        link = _cut(_storable(path), self._max_link)
        template = _template(route, fastapi, mounted, router)
        routed = "" if template is None else f',"route":{_json(template)}'
        value = (
            f'{{"method":{_json(_cut(_storable(method), MAX_METHOD))},"link":{_json(link)}'
            f',"footprint_time":"{self._time(started)}","status":{status},"duration_ms":{seconds * 1000:.3f}'
            f'{routed},"service":{self._service}}}'
        )
        return link.encode(), value.encode()

    def _time(self, at: float) -> str:
        """ISO 8601 with microseconds and offset. The text of a second is kept: the requests of a second share it."""
        second, micros = divmod(round(at * 1_000_000), 1_000_000)
        if second != self._second:
            text = datetime.fromtimestamp(second, self._zone).isoformat()
            self._second, self._before_fraction, self._offset = second, text[:19], text[19:]
        return f"{self._before_fraction}.{micros:06d}{self._offset}"


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    """Without patterns, nothing matches."""
    return re.compile("|".join(map(translate, patterns)) or "(?!)")


def _up_to_star(pattern: str) -> str | None:
    """Return the pattern up to its first `*`; None without one: such a pattern matches short paths only."""
    tokens = _TOKEN.findall(pattern)
    return "".join(tokens[: tokens.index("*") + 1]) if "*" in tokens else None


def _storable(text: str) -> str:
    return text if text.isprintable() else _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + _CUT


def _template(route: object, fastapi: object, mounted: str, router: object) -> str | None:
    """Return the path template of a route, such as `/items/{id}`; None if no route matched.

    Below a mounted app the prefix is the templates of the mounts, or `…` if the router does not tell them: never the
    text of the request. Newer releases of FastAPI keep the prefix of `include_router` not in the route but beside it,
    in a context that the scope holds.
    """
    context: Any = fastapi.get("effective_route_context") if isinstance(fastapi, Mapping) else None
    found = context if context is not None and getattr(context, "original_route", None) is route else route
    path = getattr(found, "path", None)
    if not isinstance(path, str):
        return None
    prefix = _mounts(router, mounted) if len(mounted) <= MAX_MOUNTED else None
    return _cut(_storable((_CUT if prefix is None else prefix) + path), MAX_ROUTE)


def _mounts(router: object, mounted: str) -> str | None:
    """Return the templates of the mounts that match this part of a path; None if the router has none that do."""
    if not mounted:
        return ""
    for each in getattr(router, "routes", ()):
        pattern, path = getattr(each, "path_regex", None), getattr(each, "path", None)
        if not hasattr(each, "app") or hasattr(each, "endpoint") or not isinstance(path, str) or pattern is None:
            continue  # no mount
        if match := pattern.match(mounted + "/"):
            rest = "/" + match.groupdict().get("path", "")
            below = _mounts(each, rest.removesuffix("/"))
            if below is not None:
                return path + below
    return None
