"""The only reasons for which a test is skipped: a missing program, and a privilege that the user does not have.

CI uses `pytest --no-skips`, which fails a test that is skipped for any other reason than a privilege: `.ci/run`
installs the programs, but it cannot give a privilege.
"""

from typing import NoReturn

import pytest

PRIVILEGE = "needs a privilege: "


def needs_package(name: str) -> NoReturn:
    """Skip the test that calls this function. `name` is that of the Debian package."""
    pytest.skip(f"needs the package {name}: apt-get install {name}")


def needs_program(name: str, way: str) -> NoReturn:
    """Skip the test that calls this function. `way`: how to get the program, which no Debian package has."""
    pytest.skip(f"needs the program {name}: {way}")


def needs_privilege(reason: str) -> NoReturn:
    """Skip the test that calls this function."""
    pytest.skip(PRIVILEGE + reason)


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Change the report of a skipped test, or of a skipped file, to a failure, unless a privilege is the reason."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if PRIVILEGE not in reason:
        report.outcome = "failed"
        report.longrepr = f"no test may be skipped here (--no-skips): {reason}"
