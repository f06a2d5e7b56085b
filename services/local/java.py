"""Finds the Java that runs Kafka, HDFS and Spark."""

import os
import re
import shutil
import subprocess
from functools import cache

from services.core.errors import NeedsOperator

_SUPPORTED = (17, 21)
_ADVICE = "install a JDK or JRE 17 or 21 (Debian: apt-get install openjdk-17-jre-headless) or point JAVA_HOME at one"


@cache
def java() -> str:
    """Return the path of the command java. Raises NeedsOperator if no version is found that all three run on."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    if found is None:
        raise NeedsOperator(f"no java in {home + '/bin (JAVA_HOME)' if home else 'PATH'}: {_ADVICE}")
    output = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', output)
    if version is None or int(version[1]) not in _SUPPORTED:
        raise NeedsOperator(f"{found} is version {version[1] if version else 'unknown'}: {_ADVICE}")
    return found


if __name__ == "__main__":
    try:
        java()
    except NeedsOperator as error:
        raise SystemExit(str(error)) from error
