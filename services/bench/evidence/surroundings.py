"""What a run was measured on and with: the machine, the versions, the settings without their secrets."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_COMPONENTS = (
    *("logpipe", "confluent-kafka", "chdb", "pyspark", "deltalake", "psycopg", "msgspec", "fastapi", "uvicorn"),
    *("aiohttp", "httpx", "hdrhistogram"),
)
_SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|API_?KEY", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<=://)([^/\s:]*):[^/\s]*@")  # a password may have an @ of its own
_PARAMETER = re.compile(r"(?<=[?&])((?:password|token|sslpassword)=)[^&\s]*", re.IGNORECASE)
_MASK = "***"


def machine() -> dict[str, str]:
    """Return a description of the machine that the driver runs on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of the packages that matter, and of the source if it lies in git."""
    found = {"python": platform.python_version()}
    for name in _COMPONENTS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    with suppress(OSError, subprocess.CalledProcessError):
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        found["commit"] = described.stdout.strip()
    return found


def masked(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings with passwords and tokens replaced, in values that are one and in URLs that hold one."""
    return {name: _MASK if _SECRET.search(name) else masked_url(value) for name, value in sorted(settings.items())}


def masked_url(url: str) -> str:
    return _PARAMETER.sub(rf"\1{_MASK}", _USER_INFO.sub(rf"\1:{_MASK}@", url))
