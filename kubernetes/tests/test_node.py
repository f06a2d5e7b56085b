"""The overlay k3s on a real one-node Kubernetes: the tests run in this order, on one cluster.

KUBE_LAB names the folder of the node's scripts (node.py). The official images are stand-ins (stand_ins.py), so these
tests say nothing about the official ones. The node enforces no network policy.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import stand_ins
import yaml
from node import NAMESPACE, Node, running, unready, wait_until
from overlays import K3S, make_secrets
from pipeline import STORES, Pipeline, clean

READY_SECONDS = 300
_SESSIONS = "log-pipeline/postgres-connections"

ROWS_PER_SECOND = 3000
KINDS = (
    "ingest-api",
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
    """With a lower target than in the manifest: on a small node, the other pods leave no more to the ingest API."""
    change = [{"op": "replace", "path": "/spec/metrics/0/resource/target/averageValue", "value": "100m"}]
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
        node.up()
        wait_until(lambda: unready(node), 2 * READY_SECONDS)
    assert pipeline.send(1000)["sent"] == 1000
    clean(pipeline.verify("verify-power"))


def test_pods_stay_within_their_requests(pipeline: Pipeline) -> None:
    """The table is printed: it sizes the requests in the manifests."""
    with pipeline.load(ROWS_PER_SECOND):
        pipeline.wait_for_rows(60 * ROWS_PER_SECOND, 180)
        table = pipeline.node.kubectl("-n", NAMESPACE, "top", "pods", "--containers")
    sys.stdout.write(f"\n{table}\n")
    restarted = [
        f"{pod['metadata']['name']}: {each['lastState']['terminated']['reason']}"
        for pod in pipeline.node.get("pods")["items"]
        for each in pod["status"].get("containerStatuses", [])
        if each.get("lastState", {}).get("terminated", {}).get("reason") == "OOMKilled"
    ]
    assert restarted == []
