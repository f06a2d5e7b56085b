"""Which requests of browsers a listener answers, so that a page of another site can neither read nor change anything.

A browser sends requests to a listener, also to one on loopback, for any page that it shows. `Host` tells the name that
the page used, which is the page's own name after DNS rebinding. `Origin` and `Sec-Fetch-Site` tell whose page it is.
curl, k6 and our own clients send neither of the two.
"""

import re

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.core.errors import shown
from services.runtime.auth import is_address
from services.runtime.problems import problem
from services.runtime.settings import CrossOriginSettings, ListenSettings

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^\[\]:@/]+?)\.?(?::[0-9]*)?", re.IGNORECASE)


class OriginGuard:
    """ASGI middleware: 421 for a host that is not ours, 403 for a request of another origin's page.

    `open_paths` answer GET for any host and any page. With `links`, a link of another page to this listener works.
    """

    def __init__(
        self, app: ASGIApp, settings: ListenSettings, open_paths: frozenset[str], *, links: bool = True
    ) -> None:
        self._app = app
        bound = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._hosts = LOOPBACK_HOSTS | {bound, *settings.hosts}
        # No page has an address of this machine as its own name, so an address proves that no name was rebound.
        self._any_address = settings.host in _WILDCARDS
        self._origins = settings.origins
        self._advice = (
            "; LOGPIPE_ALLOWED_ORIGINS names those that may" if isinstance(settings, CrossOriginSettings) else ""
        )
        self._open_paths = open_paths
        self._links = links

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        app = self._app if refusal is None else refusal
        await app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["method"] == "GET" and scope["path"] in self._open_paths:
            return None
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_ours(host):
            return problem(
                421, f"nothing here answers as host {shown(host)!r}; LOGPIPE_ALLOWED_HOSTS names further hosts"
            )
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin", b"").decode("latin-1")
        if not _crosses_origins(site, origin, host) or origin in self._origins:
            return None
        if self._links and scope["method"] == "GET" and headers.get(b"sec-fetch-dest") == b"document":
            return None
        whose = f"of {shown(origin)}" if origin else "of another origin"
        return problem(403, f"a web page {whose} may not call this{self._advice}")

    def _is_ours(self, host: str) -> bool:
        parsed = _HOST.fullmatch(host)
        if parsed is None:
            return False
        name = parsed["name"]
        return name in self._hosts or (self._any_address and is_address(name.strip("[]")))


def _crosses_origins(site: bytes | None, origin: str, host: str) -> bool:
    """Return whether the page is of another origin than this listener; a request without both headers is no page's."""
    if site is not None:
        return site not in (b"same-origin", b"none")
    return bool(origin) and origin.partition("://")[2] != host
