"""The overlay k3s on a real one-node Kubernetes: the tests run in this order, on one cluster.

KUBE_LAB names the folder of the node's scripts (node.py). The official images are stand-ins (stand_ins.py), so these
tests say nothing about the official ones. The node enforces no network policy.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import stand_ins
import yaml
from node import NAMESPACE, Node, running, unready, wait_until
from overlays import K3S, make_secrets
from pipeline import STORES, Pipeline, clean

from kubernetes.monitoring.dashboards.exporters import EXPORTERS
from tests import panels
from tests.promql import metrics_in

READY_SECONDS = 900
_SESSIONS = "log-pipeline/postgres-connections"

ROWS_PER_SECOND = 3000
KINDS = (
    "ingest-api",
    "kafka-source",
    "stream-to-store",
    "stream-to-lake",
    "query-api",
    "maintain",
    "alerting",
    "redis",
    "clickhouse",
    "datanode",
    "namenode",
    "kafka",
    "postgres",
)


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    with running(Node.from_environment()) as node:
        yield node


@pytest.fixture(scope="session")
def secrets() -> dict[str, str]:
    return make_secrets()


@pytest.fixture(scope="session")
def overlay(node: Node, secrets: dict[str, str]) -> list[dict[str, Any]]:
    """What `kubectl apply -k` applies, without what there is no stand-in for: its images are printed."""
    built = [each for each in yaml.safe_load_all(node.kubectl("kustomize", str(K3S))) if each]
    kept, left_out = stand_ins.leave_out(built)
    sys.stdout.write(f"no stand-in, left out: {', '.join(left_out) or 'nothing'}\n")
    return kept


@pytest.fixture(scope="session")
def pipeline(
    node: Node, overlay: list[dict[str, Any]], secrets: dict[str, str], request: pytest.FixtureRequest
) -> Pipeline:
    if not request.config.getoption("images_loaded"):
        stand_ins.build(node, stand_ins.images(overlay))
    assert node.apply(yaml.safe_dump_all(overlay)) == ""  # no warning
    return Pipeline(node, secrets["LOGPIPE_TOKEN"])


def test_all_pods_get_ready(pipeline: Pipeline) -> None:
    wait_until(lambda: unready(pipeline.node), READY_SECONDS)


def test_a_row_reaches_every_store(pipeline: Pipeline) -> None:
    assert pipeline.send(1)["sent"] == 1
    wait_until(lambda: "; ".join(f"{store} lacks the row" for store in STORES if pipeline.logs_in(store) != 1), 120)


def test_the_ingest_api_scales_under_load(pipeline: Pipeline) -> None:
    """With a lower target than in the manifest: this load takes about 36 m of the ingest API."""
    change = [{"op": "replace", "path": "/spec/metrics/0/resource/target/averageValue", "value": "20m"}]
    pipeline.node.kubectl("-n", NAMESPACE, "patch", "hpa", "ingest-api", "--type=json", "-p", json.dumps(change))

    def problem() -> str:
        status = pipeline.node.get("hpa", "ingest-api")["status"]
        scaled = status["currentReplicas"] > 1 and not unready(pipeline.node)
        return "" if scaled else f"the autoscaler of the ingest API says {status}"

    with pipeline.load(ROWS_PER_SECOND):
        wait_until(problem, 240)
        pipeline.wait_for_rows(10 * ROWS_PER_SECOND, 60)
    clean(pipeline.verify("verify-load"))


def test_no_pod_opens_more_sessions_than_it_says(pipeline: Pipeline) -> None:
    """The sum of what the pods say is what PostgreSQL accepts (tests/kubernetes/test_connections.py)."""
    node = pipeline.node
    query = "SELECT host(client_addr), count(*) FROM pg_stat_activity WHERE client_addr <> '127.0.0.1' GROUP BY 1"
    psql = ("psql", "--username=postgres", "--no-align", "--tuples-only", "--command", query)
    said = node.kubectl("-n", NAMESPACE, "exec", "postgres-0", "-c", "postgres", "--", *psql)
    sessions = {address: int(count) for address, count in (line.split("|") for line in said.split())}
    most = {
        pod["status"].get("podIP"): int(pod["metadata"].get("annotations", {}).get(_SESSIONS, 0))
        for pod in node.get("pods")["items"]
    }
    assert sessions
    assert {address: count for address, count in sessions.items() if count > most.get(address, 0)} == {}


@pytest.mark.parametrize("name", KINDS)
def test_a_deleted_pod_comes_back_under_load(pipeline: Pipeline, name: str) -> None:
    node = pipeline.node
    with pipeline.load(ROWS_PER_SECOND // 3):
        pipeline.wait_for_rows(2 * ROWS_PER_SECOND, 60)
        pod = node.get("pods", "-l", f"app.kubernetes.io/name={name}")["items"][0]["metadata"]["name"]
        node.kubectl("-n", NAMESPACE, "delete", "pod", pod, "--wait=true")
        wait_until(lambda: unready(node), READY_SECONDS)
        pipeline.wait_for_rows(2 * ROWS_PER_SECOND, 120)
    clean(pipeline.verify(f"verify-{name}"))


@pytest.mark.parametrize("name", ["ingest-api", "stream-to-store"])
def test_a_rolling_update_refuses_no_request_and_doubles_no_row(pipeline: Pipeline, name: str) -> None:
    node = pipeline.node
    before = pipeline.status()["stats"]
    with pipeline.load(ROWS_PER_SECOND // 3):
        pipeline.wait_for_rows(2 * ROWS_PER_SECOND, 60)
        node.kubectl("-n", NAMESPACE, "rollout", "restart", f"deployment/{name}")
        node.kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{name}", "--timeout=110s")
        pipeline.wait_for_rows(2 * ROWS_PER_SECOND, 120)
    after = pipeline.status()["stats"]
    assert [after[key] - before[key] for key in ("errors", "refused", "indeterminate")] == [0, 0, 0]
    clean(pipeline.verify(f"verify-roll-{name}"))


def test_a_power_cut_loses_nothing_that_was_accepted(pipeline: Pipeline) -> None:
    node = pipeline.node
    with pipeline.load(ROWS_PER_SECOND // 3):
        pipeline.wait_for_rows(5 * ROWS_PER_SECOND, 60)
        node.down(keep=True)
        cut = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        node.up()
        wait_until(lambda: unready(node, cut), 2 * READY_SECONDS)
    assert pipeline.send(1000)["sent"] == 1000
    clean(pipeline.verify("verify-power"))


def test_a_second_driver_is_stopped_by_the_first(pipeline: Pipeline) -> None:
    """A second driver comes by a wrong number of replicas. One of the two ends itself, and says why."""
    node = pipeline.node
    said = "let only one driver run"

    def problem() -> str:
        pods = ("stream-to-lake-0", "stream-to-lake-1")
        logs = [
            node.kubectl("-n", NAMESPACE, "logs", pod, *which, check=False) for pod in pods for which in ([], ["-p"])
        ]
        return "" if any(said in text for text in logs) else "no driver has said that there are two"

    with pipeline.load(ROWS_PER_SECOND // 3):
        node.kubectl("-n", NAMESPACE, "scale", "statefulset", "stream-to-lake", "--replicas", "2")
        try:
            wait_until(problem, 2 * READY_SECONDS)
        finally:
            node.kubectl("-n", NAMESPACE, "scale", "statefulset", "stream-to-lake", "--replicas", "1")
        wait_until(lambda: unready(node), READY_SECONDS)
    clean(pipeline.verify("verify-drivers"))


MISTAKES = {
    "a key that the Secret lacks": "couldn't find key REDIS_PASWORD in Secret log-pipeline/logpipe-secrets",
    "a version that was not built": "log-pipeline/services:0.0.0",
    "a volume that nothing provides": "unbound immediate PersistentVolumeClaims",
}


def mistaken(deployment: dict[str, Any], mistake: str) -> list[dict[str, Any]]:
    """The pod of a deployment as a pod of its own, with a mistake in its manifest."""
    template = json.loads(json.dumps(deployment["spec"]["template"]))
    pod, container = template["spec"], template["spec"]["containers"][0]
    objects: list[dict[str, Any]] = []
    if "key" in mistake:
        key = {"name": "logpipe-secrets", "key": "REDIS_PASWORD"}
        container["env"].append({"name": "LOGPIPE_MISTAKE", "valueFrom": {"secretKeyRef": key}})
    elif "version" in mistake:
        container["image"] = "log-pipeline/services:0.0.0"
    else:
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        named = {"name": "mistake", "namespace": NAMESPACE}
        kind = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        objects.append({**kind, "metadata": named, "spec": {**claim, "storageClassName": ""}})
        pod["volumes"].append({"name": "mistake", "persistentVolumeClaim": {"claimName": "mistake"}})
    metadata = {"name": "mistake", "namespace": NAMESPACE}
    return [*objects, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_by_an_event(pipeline: Pipeline, overlay: list[dict[str, Any]], mistake: str) -> None:
    node = pipeline.node
    (alerting,) = [each for each in overlay if (each["kind"], each["metadata"]["name"]) == ("Deployment", "alerting")]
    objects = yaml.safe_dump_all(mistaken(alerting, mistake))
    node.apply(objects)
    try:
        wait_until(lambda: "" if MISTAKES[mistake] in (said := node.events("mistake")) else said or "no event", 60)
    finally:
        node.kubectl("delete", "--force", "--grace-period=0", "-f", "-", stdin=objects)


def metrics_served(overlay: list[dict[str, Any]]) -> set[str]:
    """The workloads with a port that Prometheus scrapes (components/monitoring/config/prometheus.yml)."""
    found = set()
    for each in overlay:
        if each["kind"] in {"Deployment", "StatefulSet", "DaemonSet"} and each["spec"].get("replicas", 1):
            template = each["spec"]["template"]
            ports = {port["name"] for part in template["spec"]["containers"] for port in part.get("ports", [])}
            component = template["metadata"]["labels"]["app.kubernetes.io/component"]
            if "metrics" in ports or ("http" in ports and component in {"api", "sink"}):
                found.add(each["metadata"]["name"])
    return found


def test_prometheus_scrapes_every_target_and_no_panel_is_empty(
    pipeline: Pipeline, overlay: list[dict[str, Any]]
) -> None:
    # The stand-in for ClickHouse is an embedded engine, which serves no metrics.
    expected = metrics_served(overlay) - {"clickhouse"}
    wanted = {
        panel: query for panel, query in panels.queries().items() if not metrics_in(query) & EXPORTERS["clickhouse"]
    }

    def not_up() -> str:
        up = {each["metric"]["job"] for each in pipeline.samples("min by (job) (up) == 1")}
        return ", ".join(sorted(expected - up))

    def empty() -> str:
        pipeline.query_every_store()
        return "; ".join(
            panel
            for panel, query in wanted.items()
            if all(each["value"][1] == "NaN" for each in pipeline.samples(query))
        )

    wait_until(not_up, 120)
    clean(pipeline.verify("verify-panels"))
    with pipeline.load(ROWS_PER_SECOND // 3):
        wait_until(empty, 240)


@pytest.mark.parametrize("rows_per_second", [15_000, 30_000])
def test_pods_stay_within_their_limits(pipeline: Pipeline, rows_per_second: int) -> None:
    """Two minutes of load. The table is printed: it sizes the requests in the manifests."""
    node, mebibytes = pipeline.node, defaultdict[tuple[str, str], float](float)
    first, sent, begun = node.usage(), pipeline.sent(), time.monotonic()
    with pipeline.load(rows_per_second):
        while (seconds := time.monotonic() - begun) < 120:
            last = node.usage()
            for container, usage in last.items():
                first.setdefault(container, usage)  # the autoscaler starts pods
                mebibytes[container] = max(mebibytes[container], usage.mebibytes)
            time.sleep(5)
        rate = (pipeline.sent() - sent) / seconds
    lines = [
        f"{pod:40} {name:24} {usage.millicores_since(first[pod, name]):6.0f} m {mebibytes[pod, name]:6.0f} MiB"
        for (pod, name), usage in sorted(last.items())
        if usage.measured_at > first[pod, name].measured_at
    ]
    assert lines
    sys.stdout.write(f"\n{rate:,.0f} rows/s; mean CPU and most memory of each container:\n" + "\n".join(lines) + "\n")
    assert node.killed_for_memory() == []
    clean(pipeline.verify(f"verify-{rows_per_second}", seconds=600))
