from pathlib import Path

import pytest

from spark_jobs import session
from spark_jobs.settings import SparkSettings


class Builder:
    """Keeps what a builder of a session was told."""

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}

    def config(self, key: str, value: str) -> "Builder":
        self.settings[key] = value
        return self

    def __getattr__(self, name: str) -> object:
        return lambda *_: self


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder()
    monkeypatch.setattr(session, "SparkSession", type("SparkSession", (), {"builder": made}))
    for name in ("SPARK_LOCAL_IP", "SPARK_CONF_DIR"):
        monkeypatch.setenv(name, "kept")
    return made


def test_the_jars_of_a_folder_are_written_out(builder: Builder, tmp_path: Path) -> None:
    for name in ("b.jar", "a.jar", "a.txt"):
        (tmp_path / name).touch()
    session.open_session("test", SparkSettings(spark_jars=f"{tmp_path},/elsewhere/c.jar"))
    assert builder.settings["spark.jars"] == f"{tmp_path}/a.jar,{tmp_path}/b.jar,/elsewhere/c.jar"
    assert "spark.jars.packages" not in builder.settings


def test_without_jars_spark_resolves_them(builder: Builder) -> None:
    session.open_session("test", SparkSettings(spark_jars=""))
    assert "spark.jars" not in builder.settings
    assert builder.settings["spark.jars.packages"] == session.PACKAGES
