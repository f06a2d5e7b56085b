"""The pipeline as a client sees it: the generator and the query API by the node's ports, verify by a Job."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from node import ADDRESS, NAMESPACE, Node, wait_until

_GENERATOR = f"http://{ADDRESS}:30800"
_QUERY = f"http://{ADDRESS}:30801"
_PROMETHEUS = f"http://prometheus.{NAMESPACE}:9090"
STORES = ("postgres", "clickhouse", "hdfs")


@dataclass(frozen=True, slots=True)
class Pipeline:
    node: Node
    token: str

    def send(self, count: int) -> dict[str, Any]:
        """Send logs, and wait until the fate of each is known."""
        return self._post(f"/burst/logs?count={count}&batch_size={min(count, 1000)}")

    def status(self) -> dict[str, Any]:
        return self._json(f"{_GENERATOR}/control/status")

    @contextmanager
    def load(self, rows_per_second: int, batch: int = 1000) -> Iterator[None]:
        """Nine tenths logs, one tenth events."""
        logs, events = batch / (rows_per_second * 0.9), batch / (rows_per_second * 0.1)
        self._post(f"/control/start?batch_size={batch}&log_interval={logs:.4f}&event_interval={events:.4f}")
        try:
            yield
        finally:
            self._post("/control/stop")

    def sent(self) -> int:
        stats = self.status()["stats"]
        return int(stats["logs_sent"] + stats["events_sent"])

    def wait_for_rows(self, rows: int, seconds: float) -> None:
        """Wait until the generator has sent this many rows more."""
        goal = self.sent() + rows

        def problem() -> str:
            sent = self.sent()
            return "" if sent >= goal else f"{sent} rows are sent, not {goal}"

        wait_until(problem, seconds)

    def logs_in(self, store: str) -> int:
        return int(self._json(f"{_QUERY}/api/query/{store}/stats").get("logs_count", 0))

    def query_every_store(self) -> None:
        """Ask each store for rows and for counts, so that the panels of queries have something to show."""
        for store in STORES:
            for path in ("stats?method=scan", "logs?limit=10", "logs/aggregate?group_by=level&method=scan"):
                self._json(f"{_QUERY}/api/query/{store}/{path}")

    def samples(self, expression: str) -> list[dict[str, Any]]:
        """Ask the Prometheus of the cluster. Each sample has `metric`, the labels, and `value`, a time and a text."""
        said = self._json("--get", "--data-urlencode", f"query={expression}", f"{_PROMETHEUS}/api/v1/query")
        assert said["status"] == "success", said
        found: list[dict[str, Any]] = said["data"]["result"]
        return found

    def verify(self, name: str, seconds: float = 300) -> dict[str, Any]:
        """Run `logpipe verify` over all rows in a pod, as the CronJob would run it, and return its report."""
        job = json.loads(
            self.node.kubectl(
                *("-n", NAMESPACE, "create", "job", name, "--from=cronjob/verify", "--dry-run=client", "-o", "json")
            )
        )
        job["spec"]["template"]["spec"]["containers"][0]["args"] = ["verify", "--all", "--json", "--wait", "120"]
        self.node.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=json.dumps(job))

        def problem() -> str:
            status = self.node.get("job", name)["status"]
            return "" if status.get("succeeded") or status.get("failed") else f"{name} runs"

        wait_until(problem, seconds)
        said = self.node.kubectl("-n", NAMESPACE, "logs", f"job/{name}")
        self.node.kubectl("-n", NAMESPACE, "delete", "job", name)
        reports = [line for line in said.splitlines() if line.startswith("{") and '"results"' in line]
        assert len(reports) == 1, f"verify printed no report:\n{said[-3000:]}"
        report: dict[str, Any] = json.loads(reports[0])
        return report

    def _post(self, path: str) -> dict[str, Any]:
        return self._json("-X", "POST", "-H", f"Authorization: Bearer {self.token}", f"{_GENERATOR}{path}")

    def _json(self, *arguments: str) -> dict[str, Any]:
        said = self.node.curl(*arguments)
        try:
            body: dict[str, Any] = json.loads(said)
        except json.JSONDecodeError as error:
            raise AssertionError(f"no JSON from {arguments[-1]}: {said[:1000]}") from error
        return body


def clean(report: dict[str, Any]) -> None:
    """Nothing is lost, doubled or changed, and every store was compared."""
    assert report["ok"], json.dumps(report, indent=1)[:4000]
    assert not report["unchecked"], report["unchecked"]
    stores = {result["store"] for result in report["results"]}
    assert len(stores) == len(STORES), stores
