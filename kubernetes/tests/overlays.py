"""The overlays, and the secrets that they need."""

import subprocess
import sys
from pathlib import Path

_KUBERNETES = Path(__file__).parents[1]
_SECRETS = _KUBERNETES / "secrets"

OVERLAYS = sorted(file.parent for file in (_KUBERNETES / "overlays").glob("*/kustomization.yaml"))
K3S = _KUBERNETES / "overlays" / "k3s"


def make_secrets() -> dict[str, str]:
    """Secrets as `make secrets` writes them; those that are there are kept."""
    subprocess.run([sys.executable, _SECRETS / "generate.py"], check=True, stdout=subprocess.DEVNULL)
    lines = (_SECRETS / "logpipe.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
