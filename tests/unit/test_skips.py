"""The option --no-skips of this suite, in a pytest of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "from tests.skips import needs_package\n\ndef test_it():\n    needs_package('strace')\n"
PRIVILEGE = "from tests.skips import needs_privilege\n\ndef test_it():\n    needs_privilege('not root')\n"
MARK = "import pytest\n\n@pytest.mark.skip(reason='later')\ndef test_it():\n    pass\n"
FILE = "import pytest\n\npytest.skip('later', allow_module_level=True)\n"
FIXTURE = "import pytest\n\n@pytest.fixture\ndef thing():\n    pytest.skip('later')\n\ndef test_it(thing):\n    pass\n"


@pytest.mark.parametrize(
    ("text", "options", "fails"),
    [
        (PACKAGE, [], False),
        (PACKAGE, ["--no-skips"], True),
        (PRIVILEGE, ["--no-skips"], False),
        (MARK, ["--no-skips"], True),
        (FIXTURE, ["--no-skips"], True),
        (FILE, ["--no-skips"], True),
    ],
    ids=["package, allowed", "package", "privilege", "mark", "fixture", "file"],
)
def test_a_skip_is_a_failure_unless_a_privilege_is_its_reason(
    tmp_path: Path, text: str, options: list[str], fails: bool
) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, "--rootdir", str(tmp_path), *options, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode != 0) == fails, ended.stdout + ended.stderr
    assert ("no test may be skipped here" in ended.stdout) == fails, ended.stdout + ended.stderr
