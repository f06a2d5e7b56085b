"""Authentication: a process that listens beyond loopback requires a bearer token."""

import ipaddress
import secrets
from typing import Literal

from services.core.errors import NeedsOperator, Unauthorized
from services.runtime.settings import ListenSettings

Access = Literal["open", "read", "control"]
"""open: health and metrics; read: queries; control: everything that changes or costs something."""


class Guard:
    """Decides on one request; raises NeedsOperator at construction when the process would listen unprotected."""

    def __init__(self, settings: ListenSettings) -> None:
        self._token = settings.token.get_secret_value() if settings.token else ""
        self._public_reads = settings.public_reads
        if not self._token and not is_loopback(settings.host):
            raise NeedsOperator(
                f"refusing to listen on {settings.host} without a token: set LOGPIPE_TOKEN, or LOGPIPE_HOST=127.0.0.1"
            )

    def check(self, access: Access, authorization: str) -> None:
        """`authorization`: the request's header of that name, '' if absent. Raises Unauthorized."""
        if not self._token or access == "open" or (access == "read" and self._public_reads):
            return
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(given.encode(), self._token.encode()):
            raise Unauthorized("send the header 'Authorization: Bearer <token>'")


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if is_address(host) else host == "localhost"


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
