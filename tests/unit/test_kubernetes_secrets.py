"""`make secrets`: the passwords and keys of a cluster."""

import base64
import importlib.util
import uuid
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "kubernetes" / "secrets"


@pytest.fixture(scope="module")
def secrets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_key_of_the_example_gets_a_value_of_its_own_that_only_the_user_can_read(
    secrets: ModuleType, tmp_path: Path
) -> None:
    target = tmp_path / "logpipe.env"
    added = secrets.generate(secrets.EXAMPLE, target)
    values = secrets.read(target)
    assert list(values) == added == list(secrets.read(secrets.EXAMPLE))
    assert len(set(values.values())) == len(values)
    assert not set(values.values()) & set(secrets.read(secrets.EXAMPLE).values())
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_value_that_is_there_is_kept_and_one_that_is_missing_or_empty_is_added(
    secrets: ModuleType, tmp_path: Path
) -> None:
    example, target = tmp_path / "example.env", tmp_path / "logpipe.env"
    example.write_text("# a comment\nOLD=change-me\n\nNEW=change-me\nEMPTY=change-me\n")
    target.write_text("OLD=is=kept\nOWN=too\nEMPTY=\n")
    target.chmod(0o644)
    assert secrets.generate(example, target) == ["NEW", "EMPTY"]
    values = secrets.read(target)
    assert (values["OLD"], values["OWN"]) == ("is=kept", "too")
    assert values["NEW"]
    assert values["EMPTY"]
    assert target.stat().st_mode & 0o777 == 0o600
    assert secrets.generate(example, target) == []
    assert secrets.read(target) == values


def test_values_have_the_form_that_their_readers_expect(secrets: ModuleType) -> None:
    for _ in range(300):  # one in 64 cluster ids would begin with a dash
        text = secrets.cluster_id()
        assert not text.startswith("-")
        assert uuid.UUID(bytes=base64.urlsafe_b64decode(text + "==")).version == 4
    assert len(base64.urlsafe_b64decode(secrets.fernet_key())) == 32
    assert secrets.password().isalnum()


def test_git_ignores_the_values(secrets: ModuleType) -> None:
    assert secrets.TARGET.name in (FOLDER / ".gitignore").read_text().splitlines()
