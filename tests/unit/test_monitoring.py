"""Alert rules and dashboards: they name metrics that exist, are documented, and do what their tests say."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubernetes.monitoring.dashboards.__main__ import main as write_dashboards
from kubernetes.monitoring.dashboards.exporters import EXPORTERS
from tests.panels import BOARDS, panels, targets
from tests.promql import TARGET_LABELS, labels_in, metrics_in, own_metrics
from tests.skips import needs_package

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "kubernetes" / "monitoring"
RULES = MONITORING / "alert_rules.yaml"
RULES_TEST = MONITORING / "alert_rules_test.yaml"
OF_EXPORTERS = frozenset[str]().union(*EXPORTERS.values())


def expressions() -> dict[str, str]:
    """Where an expression stands -> the expression, of all dashboards and alerts."""
    found = {
        f"{board}: {panel['title']} {target['refId']}": target["expr"] for board, panel, target in targets("prometheus")
    }
    return found | {alert["alert"]: alert["expr"] for alert in alerts()}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("expression", expressions().values(), ids=expressions().keys())
def test_an_expression_names_metrics_and_labels_that_exist(expression: str) -> None:
    named, own = metrics_in(expression), own_metrics()
    assert named
    assert named <= own.keys() | OF_EXPORTERS
    if named <= own.keys():
        assert labels_in(expression) <= TARGET_LABELS.union(*(own[name].labels for name in named))


def test_the_list_of_exporters_has_no_metric_that_nobody_uses() -> None:
    assert {name for each in expressions().values() for name in metrics_in(each)} - own_metrics().keys() == OF_EXPORTERS


def test_dashboards_are_those_that_their_code_writes(tmp_path: Path) -> None:
    write_dashboards(tmp_path)
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert written == {board.name: board.read_bytes() for board in BOARDS}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_every_panel_has_a_unit_a_title_and_a_query(board: Path) -> None:
    for panel in panels(board):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["title"].split()) >= 2
        assert all(
            target["rawSql"] if "rawSql" in target else target["expr"] and target["legendFormat"]
            for target in panel["targets"]
        )
        assert panel["targets"]
    numbers = [panel["id"] for panel in json.loads(board.read_text())["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_a_variable_has_the_values_of_a_label_that_exists(board: Path) -> None:
    content = board.read_text()
    variables = json.loads(content)["templating"].get("list", [])
    for variable in variables:
        if variable["type"] == "textbox":
            continue
        query = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
        assert query
        assert query[2] in own_metrics()[query[1]].labels
    texts = [target.get("expr") or target["rawSql"] for panel in panels(board) for target in panel["targets"]]
    used = set(re.findall(r"\$\{?(\w+)", " ".join(texts)))
    assert used - {"__rate_interval", "__timeFilter"} == {variable["name"] for variable in variables}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_has_a_severity_a_runbook_and_a_firing_and_a_silent_case(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in ("warning", "critical")
    file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert f"\n### {name}\n" in (ROOT / file).read_text()
    tests = yaml.safe_load(RULES_TEST.read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in cases)
    assert any(not case["exp_alerts"] for case in cases)


@pytest.mark.parametrize("file", sorted((MONITORING / "jmx").glob("*.yaml")), ids=lambda file: file.stem)
def test_settings_of_the_jmx_agent_are_shared_and_match_whole_attributes(file: Path) -> None:
    shared = ROOT / "services" / "local" / "conf" / f"jmx-{file.name}"
    assert shared.resolve() == file
    for rule in yaml.safe_load(file.read_text()).get("rules", []):
        assert rule["pattern"].endswith(":")


@pytest.mark.parametrize("arguments", [("check", "rules", RULES.name), ("test", "rules", RULES_TEST.name)], ids=str)
def test_promtool_accepts_the_rules_and_their_tests(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool") or needs_package("prometheus")
    done = subprocess.run([promtool, *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
