"""Write logpipe.env, the passwords and keys of a cluster: `make secrets`.

Each key of example.env gets a random value. A value that is there is kept, so that a running cluster goes on after a
release that needs a new key. Only the standard library is used: a machine that installs the cluster has no .venv.
"""

import base64
import os
import secrets
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

EXAMPLE = Path(__file__).with_name("example.env")
TARGET = Path(__file__).with_name("logpipe.env")


def password() -> str:
    """Letters and digits: part of a URL without escapes, and no option of a command line."""
    return secrets.token_hex(24)


def cluster_id() -> str:
    """A UUID as Kafka writes it. Kafka's tools would take one that begins with a dash for an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


SPECIAL: Mapping[str, Callable[[], str]] = {"KAFKA_CLUSTER_ID": cluster_id, "AIRFLOW_FERNET_KEY": fernet_key}


def read(file: Path) -> dict[str, str]:
    """Return the keys and values of an env file, in order; nothing if there is no such file."""
    if not file.exists():
        return {}
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def generate(example: Path, target: Path) -> list[str]:
    """Write `target` with what it lacks; return the keys that were added. An empty value counts as missing."""
    found = {key: value for key, value in read(target).items() if value}
    missing = [key for key in read(example) if key not in found]
    values = found | {key: SPECIAL.get(key, password)() for key in missing}
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.writelines(f"{key}={value}\n" for key, value in values.items())
    part.replace(target)
    return missing


if __name__ == "__main__":
    added = generate(EXAMPLE, TARGET)
    sys.stdout.write(f"{TARGET}: {', '.join(added) if added else 'complete, nothing'} added\n")
