"""The settings of the middleware of request footprints: arguments, environment variables, defaults."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from request_footprints.settings import Arguments, Settings


def test_each_setting_is_an_argument() -> None:
    assert set(Arguments.__annotations__) == {each.name for each in fields(Settings)}


def test_arguments_come_before_variables_and_variables_before_defaults() -> None:
    environment = {"FOOTPRINTS_SERVICE": "shop", "FOOTPRINTS_TOPIC": "visits"}
    read = Settings.read({"service": "cart"}, environment)
    assert (read.service, read.topic, read.timezone) == ("cart", "visits", "Asia/Seoul")


def test_variables_have_the_types_of_their_settings() -> None:
    environment = {
        "FOOTPRINTS_ENABLED": "false",
        "FOOTPRINTS_EXCLUDE": "/a, /b/*,",
        "FOOTPRINTS_SAMPLE": "0.25",
        "FOOTPRINTS_QUEUE": "50",
        "FOOTPRINTS_KAFKA": "one:9092,two:9092",
        "FOOTPRINTS_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "FOOTPRINTS_KAFKA_SASL_PASSWORD": "hidden",
    }
    read = Settings.read({}, environment)
    assert read == Settings(
        enabled=False,
        exclude=("/a", "/b/*"),
        sample=0.25,
        queue=50,
        kafka="one:9092,two:9092",
        kafka_config={"security.protocol": "SASL_SSL", "sasl.password": "hidden"},
    )
    assert "hidden" not in repr(read)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("timezone", "Mars/Olympus"),
        ("timezone", "../etc/passwd"),
        ("timezone", ""),
        ("enabled", "perhaps"),
        ("sample", "1.5"),
        ("sample", "nan"),
        ("sample", "half"),
        ("queue", "0"),
        ("queue", "many"),
        ("max_link", "0"),
        ("delivery_seconds", "0"),
        ("flush_seconds", "-1"),
        ("topic", ""),
        ("kafka", ""),
    ],
)
def test_a_wrong_value_is_named(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"footprints: {name}="):
        Settings.read({}, {f"FOOTPRINTS_{name.upper()}": text})


def test_an_argument_that_is_no_setting_is_refused() -> None:
    argument: dict[str, Any] = {"servise": "shop"}
    with pytest.raises(TypeError, match="servise"):
        Settings.read(argument, {})


def test_the_readme_has_every_setting_with_its_default() -> None:
    readme = (Path(__file__).parents[2] / "footprints" / "README.md").read_text()
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in readme.splitlines()]
    documented = {row[0]: (row[1], row[2]) for row in rows if len(row) == 4 and row[1].startswith("FOOTPRINTS_")}
    assert documented.pop("kafka_config") == ("FOOTPRINTS_KAFKA_X_Y", "-")
    assert documented.pop("exclude") == ("FOOTPRINTS_EXCLUDE", "health, metrics")
    defaults = {each.name: getattr(Settings(), each.name) for each in fields(Settings)}
    shown = {"service": "-", "enabled": "true", "include": "*"}
    assert documented == {
        name: (f"FOOTPRINTS_{name.upper()}", shown.get(name, str(default)))
        for name, default in defaults.items()
        if name not in ("kafka_config", "exclude")
    }
