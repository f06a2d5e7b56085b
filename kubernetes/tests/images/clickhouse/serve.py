"""The embedded engine on the ports of a ClickHouse server: 8123 with name and password, 9363 with figures.

The native port, the configuration folder and the client program of the official image are missing.
"""

import base64
import os
import secrets
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, start_http_server
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from services.local.clickhouse_shim import make_app
from services.runtime import http

FOLDER = Path("/var/lib/clickhouse")
_AUTHENTICATION_FAILED = 516


class Authentication:
    """ASGI middleware: every request but a probe names the user and the password, as clients of ClickHouse do."""

    def __init__(self, app: ASGIApp, user: str, password: str) -> None:
        self._app = app
        self._wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/ping":
            given = dict(scope["headers"]).get(b"authorization", b"").decode(errors="replace")
            if not secrets.compare_digest(given, self._wanted):
                message = f"Code: {_AUTHENTICATION_FAILED}. DB::Exception: name or password is wrong\n"
                headers = {"X-ClickHouse-Exception-Code": str(_AUTHENTICATION_FAILED)}
                return await PlainTextResponse(message, 403, headers)(scope, receive, send)
        return await self._app(scope, receive, send)


def main() -> None:
    figures = CollectorRegistry()
    Gauge("ClickHouseAsyncMetrics_StartTime", "When the engine was started", registry=figures).set_to_current_time()
    start_http_server(9363, registry=figures)
    app = make_app(FOLDER)
    password = os.environ["CLICKHOUSE_PASSWORD"]
    app.add_middleware(Authentication, user="logpipe", password=password)
    http.serve(app, "0.0.0.0", 8123)  # noqa: S104 - in a pod


if __name__ == "__main__":
    main()
