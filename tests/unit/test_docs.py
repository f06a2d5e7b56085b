"""The tables of metrics and settings in docs/ say what the code says, and every link resolves."""

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import services
import spark_jobs
from services.core import metric_names
from services.core.metric_names import Metric
from services.runtime.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def table(page: str) -> list[tuple[str, ...]]:
    """The rows of a page's tables whose first cell is code."""
    lines = (DOCS / page).read_text().splitlines()
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines if line.startswith("| `")]
    return [tuple(cell.strip().replace("\\|", "|") for cell in row) for row in rows]


def test_every_metric_is_documented_as_it_is() -> None:
    metrics = [value for value in vars(metric_names).values() if isinstance(value, Metric)]
    labels = {metric: ", ".join(metric.labels) or "-" for metric in metrics}
    expected = [(f"`{m.name}`", m.type, labels[m], m.help) for m in metrics]
    assert table("metrics.md") == expected


def all_settings() -> dict[str, tuple[str, str]]:
    """Environment variable -> default and description, of every process."""
    for package in (services, spark_jobs):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith(("settings", "main", "stream_to_lake")):
                importlib.import_module(module.name)
    classes, found = [Settings], dict[str, tuple[str, str]]()
    while classes:
        current = classes.pop(0)
        classes += current.__subclasses__()
        for name, field in current.model_fields.items():
            variable = f"LOGPIPE_{name.upper()}"
            said = (shown(field.default), field.description or "")
            # Several may name one: the local stack has no default for the URL of what it starts itself.
            found[variable] = max(said, found.get(variable, said))
    return found


def shown(default: Any) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    text = str(default).replace(str(Path.home()), "~")
    return "-" if default is None or text == "" else f"`{text}`"


def test_every_setting_is_documented_as_it_is() -> None:
    documented = {row[0].strip("`"): row[1:] for row in table("operations.md") if row[0].startswith("`LOGPIPE_")}
    assert documented == all_settings()


def prose(page: Path) -> list[str]:
    """The lines of a page that are not code."""
    lines, is_code = [], False
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            lines.append(line)
    return lines


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = [line.lstrip("#").strip().lower() for line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page)))
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_are_at_most_120_characters(page: Path) -> None:
    by_hand = not page.with_suffix(".json").exists()  # `make bench` writes a page beside each JSON file
    long = [line for line in prose(page) if len(line) > 120 and not line.startswith("|")]
    assert not (by_hand and long)
