"""Runs `logpipe maintain` as a command on a local stack, as a user does."""

import os
import subprocess
import sys

from services.local.settings import LocalSettings


def maintain_once(settings: LocalSettings, *options: str) -> None:
    """Do every maintenance task once. Raises CalledProcessError."""
    command = [sys.executable, "-m", "services", "maintain", "--once", *options]
    subprocess.run(command, env=os.environ | settings.urls(), check=True)
