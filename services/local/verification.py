"""`logpipe verify` run as a command on a local stack, as a user would run it."""

import json
import os
import subprocess
import sys
from typing import Any

from services.core.errors import NeedsOperator
from services.local.settings import LocalSettings


def verify(settings: LocalSettings, wait: float, *options: str) -> dict[str, Any]:
    """Its JSON report; `wait`: seconds the stores have to load everything. Raises NeedsOperator when it gave none."""
    done = subprocess.run(
        [sys.executable, "-m", "services", "verify", "--json", "--wait", str(wait), *options],
        env=os.environ | settings.urls(),
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout:
        raise NeedsOperator(f"verify could not check; `logpipe status` shows what runs. {done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
