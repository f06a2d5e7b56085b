"""Monitoring of a local stack under load: Prometheus scrapes every program, and every panel and every rule has data."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubernetes.monitoring.dashboards.exporters import EXPORTERS
from services.local import monitoring, targets, verification, view
from services.local.settings import LocalSettings
from services.local.stack import Stack
from tests import panels
from tests.conftest import short_folder
from tests.promql import metrics_in
from tests.skips import needs_package

PACKAGES = {
    "prometheus": "prometheus",
    "node-exporter": "prometheus-node-exporter",
    "redis-exporter": "prometheus-redis-exporter",
}
"""Debian's package of each program. There is none of a PostgreSQL exporter that is new enough."""

RULES = Path(__file__).parents[2] / "kubernetes" / "monitoring" / "alert_rules.yaml"
NOT_LOCAL = frozenset({"kube-state-metrics", "clickhouse"})
"""The local stack has no Kubernetes, and its embedded ClickHouse engine serves no metrics."""

OF_SPARK = frozenset({"logpipe_sink_trigger_seconds"})
"""Metrics that only the processes on Spark have, which this stack does not run."""

PROGRAMS = (
    *("postgres", "kafka", "namenode", "datanode", "clickhouse", "redis", "ingest-api", "ingest-api-2"),
    *("kafka-source", "stream-to-store", "stream-to-lake", "maintain", "alerting", "query-api", "generator"),
)
SECONDS = 240.0

pytestmark = pytest.mark.timeout(600)


@contextmanager
def watched() -> Iterator[Stack]:
    """A stack with monitoring, under load, whose stores were verified once."""
    with pytest.MonkeyPatch.context() as environment, short_folder() as folder:
        environment.setenv("LOGPIPE_MAINTAIN_SECONDS", "2")
        environment.setenv("LOGPIPE_FOOTPRINTS", "true")
        environment.setenv("LOGPIPE_KAFKA_SOURCE_TOPIC", "web-logs-topic")
        chosen = {"monitoring": True, "lake_writer": "embedded"}  # Spark would take minutes on a busy machine
        settings = LocalSettings.on_free_ports(folder).model_copy(update=chosen)
        with Stack(settings, PROGRAMS) as up:
            _start_load(settings)
            verification.verify(settings, 60, "--sample", "10")
            yield up


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    absent = monitoring.absent()
    for name, package in PACKAGES.items():
        if name in absent:
            needs_package(package)
    with watched() as up:
        yield up


def _start_load(settings: LocalSettings) -> None:
    parameters = {"batch_size": 100, "log_interval": 0.1, "event_interval": 0.5}
    httpx.post(f"http://127.0.0.1:{settings.generator_port}/control/start", params=parameters).raise_for_status()


def _query_every_store(settings: LocalSettings) -> None:
    for route in ("postgres", "hdfs", "clickhouse"):
        for path in ("stats?method=scan", "logs?limit=10", "logs/aggregate?group_by=level&method=scan"):
            with suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{settings.query_port}/api/query/{route}/{path}", timeout=30)


def prometheus(stack: Stack, path: str, **parameters: str) -> Any:
    address = stack.program("prometheus").address
    reply = httpx.get(f"{address}/api/v1/{path}", params=parameters, timeout=30)
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


def has_data(stack: Stack, expression: str) -> bool:
    """Whether Grafana would draw a line: NaN is the quantile of a histogram that counted nothing."""
    found = prometheus(stack, "query", query=expression)["result"]
    return any(sample["value"][1] != "NaN" for sample in found)


def wait_until_none(left: Callable[[], list[str]], between: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while missing := left():
        assert time.monotonic() < deadline, missing
        between()
        time.sleep(1)


def test_every_target_answers_with_the_labels_of_the_cluster(stack: Stack) -> None:
    expected = {
        (target.job, target.program, target.endpoint)
        for target in targets.targets(stack.settings)
        if target.program in stack.names
    }
    assert len(expected) >= 14  # nine processes, three JVMs and two exporters

    def not_up() -> list[str]:
        found = prometheus(stack, "query", query="up")["result"]
        up = {
            tuple(s["metric"][label] for label in ("job", "instance", "endpoint"))
            for s in found
            if s["value"][1] == "1"
        }
        return sorted(map(str, expected - up))

    wait_until_none(not_up, lambda: None)
    assert {target["labels"]["instance"] for target in prometheus(stack, "targets")["activeTargets"]} <= set(
        stack.names
    )


def test_no_panel_is_empty_under_load(stack: Stack) -> None:
    absent = NOT_LOCAL | monitoring.absent().keys()
    unknown = OF_SPARK.union(*(EXPORTERS[name] for name in absent & EXPORTERS.keys()))
    wanted = {panel: each for panel, each in panels.queries().items() if not metrics_in(each) & unknown}
    assert len(wanted) > len(panels.queries()) * 0.8
    wait_until_none(
        lambda: [panel for panel, each in wanted.items() if not has_data(stack, each)],
        lambda: _query_every_store(stack.settings),
    )


def test_every_rule_is_evaluated_without_an_error(stack: Stack) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus(stack, "rules")["groups"] for rule in group["rules"]]

    wait_until_none(lambda: [rule["name"] for rule in rules() if rule["health"] == "unknown"], lambda: None)
    assert {rule["name"]: rule.get("lastError", "") for rule in rules() if rule["health"] != "ok"} == {}
    assert len(rules()) == RULES.read_text().count("- alert:")


def test_each_ingest_process_has_metrics_of_its_own(stack: Stack) -> None:
    expression = 'count by (instance) (process_start_time_seconds{job="ingest-api"})'
    found = prometheus(stack, "query", query=expression)["result"]
    assert {sample["metric"]["instance"] for sample in found} == {"ingest-api", "ingest-api-2"}
    starts = prometheus(stack, "query", query='process_start_time_seconds{job="ingest-api"}')["result"]
    assert len({sample["value"][1] for sample in starts}) == 2


@pytest.mark.parametrize("name", sorted(each for each in EXPORTERS["jmx-agent hdfs"] if "namenode" in each))
def test_a_figure_of_the_namenode_is_one_series(stack: Stack, name: str) -> None:
    """A pattern of the JMX agent that is too wide gives the figures of several attributes one name."""
    assert len(prometheus(stack, "query", query=name)["result"]) == 1


def test_status_shows_prometheus_and_its_page_is_closed_to_other_origins(stack: Stack) -> None:
    (row,) = [row for row in view.rows(stack) if row.name == "prometheus"]
    assert (row.address, row.missing) == (f"http://127.0.0.1:{stack.settings.local_prometheus_port}", None)
    for origin, allowed in (("https://elsewhere.example", False), (row.address, True)):
        reply = httpx.get(f"{row.address}/api/v1/labels", headers={"Origin": origin})
        assert ("access-control-allow-origin" in reply.headers) is allowed


def test_a_program_that_is_stopped_counts_as_down(stack: Stack) -> None:
    stack.down(("alerting",))
    wait_until_none(
        lambda: [] if prometheus(stack, "query", query='up{job="alerting"} == 0')["result"] else ["alerting is up"],
        lambda: None,
    )


def test_no_password_is_in_a_metric(stack: Stack) -> None:
    secrets = [file.read_text().strip().rpartition(":")[2] for file in (stack.folder / "passwords").iterdir()]
    assert len(secrets) >= 3
    for target in prometheus(stack, "targets")["activeTargets"]:
        if target["health"] == "up":
            text = httpx.get(target["scrapeUrl"], timeout=30).text
            assert not [secret for secret in secrets if secret in text]
            assert re.search(r"^\w+(\{|\s)", text, re.MULTILINE)
