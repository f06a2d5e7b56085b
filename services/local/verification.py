"""Runs `logpipe verify` as a command on a local stack, as a user does."""

import json
import os
import subprocess
import sys
from typing import Any

from services.core.errors import NeedsOperator
from services.local.settings import LocalSettings


def verify(settings: LocalSettings, wait: float, *options: str) -> dict[str, Any]:
    """Return the JSON report. `wait`: the seconds that the stores have to load everything. Raises NeedsOperator."""
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
