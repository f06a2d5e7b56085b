"""The embedded ClickHouse engine as a program of the stack."""

import sys

from services.local.program import Program, http_ready
from services.local.settings import LocalSettings


def clickhouse(settings: LocalSettings) -> Program:
    port = settings.local_clickhouse_port
    folder = settings.folder / "clickhouse"
    address = f"http://127.0.0.1:{port}"
    shim = (sys.executable, "-m", "services.local.clickhouse_shim")
    return Program(
        name="clickhouse",
        command=(*shim, "--folder", str(folder), "--port", str(port)),
        folder=folder,
        address=address,
        ports={"LOGPIPE_LOCAL_CLICKHOUSE_PORT": port},
        ready=http_ready(f"{address}/?query=SELECT%201"),
    )
