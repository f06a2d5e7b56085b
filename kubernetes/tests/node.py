"""A one-node Kubernetes for tests, by the scripts of the folder that KUBE_LAB names.

The folder has: up.sh, down.sh [--keep], k (kubectl as administrator), in-node COMMAND, image-build.sh, apiserver.sh.
What they write lies below KUBE_STATE.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

NAMESPACE = "log-pipeline"
ADDRESS = "10.99.0.1"
"""The node's own address, inside. Its ports are asked from inside: those of the host may be taken."""

_BUILD_SECONDS, _COMMAND_SECONDS = 900, 120


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container had used at a time. `core_seconds`: since its start. `mebibytes`: its working set then."""

    measured_at: datetime
    core_seconds: float
    mebibytes: float

    def millicores_since(self, earlier: "Usage") -> float:
        """The mean between both measurements."""
        seconds = (self.measured_at - earlier.measured_at).total_seconds()
        return 1000 * (self.core_seconds - earlier.core_seconds) / seconds


@dataclass(frozen=True, slots=True)
class Node:
    lab: Path

    @classmethod
    def from_environment(cls) -> "Node":
        folder = Path(os.environ.get("KUBE_LAB", ""))
        if not (folder / "up.sh").is_file():
            raise SystemExit("set KUBE_LAB to the folder with the scripts of a one-node Kubernetes (up.sh, k, ...)")
        return cls(folder)

    def up(self) -> None:
        self._run("up.sh", environment={"KUBE_FORWARD": "0"})

    def down(self, *, keep: bool = False) -> None:
        """With `keep`, the cluster and its volumes are there again after `up`, as after a power cut."""
        self._run("down.sh", *(["--keep"] if keep else []))

    def build(
        self,
        tag: str,
        context: Path,
        *,
        file: Path | None = None,
        base: str = "",
        volumes: dict[Path, str] | None = None,
    ) -> None:
        """Build an image and load it into the node.

        `base`: the image that the Dockerfile begins with. `volumes`: folders that its commands see, and where.
        """
        options = [f"--volume={folder}:{at}:ro" for folder, at in (volumes or {}).items()]
        if base:
            options += ["--as", base]
        if file:
            options += ["-f", str(file)]
        self._run("image-build.sh", "-t", tag, *options, str(context), seconds=_BUILD_SECONDS)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self._run("k", *arguments, stdin=stdin, check=check)

    def apply(self, manifests: str) -> str:
        """Apply objects, and return the warnings, which are offences against Pod Security for example."""
        return self._end("k", "apply", "-f", "-", stdin=manifests).stderr

    def apply_to_api_server(self, overlay: Path) -> str:
        """Apply a folder to an API server that runs nothing and ends with the command. Returns the warnings."""
        return self._end("apiserver.sh", "kubectl", "apply", "-k", str(overlay)).stderr

    def get(self, *arguments: str) -> Any:
        """Objects of the namespace as kubectl prints them in JSON."""
        return json.loads(self.kubectl("-n", NAMESPACE, "get", *arguments, "-o", "json"))

    def usage(self) -> dict[tuple[str, str], Usage]:
        """Return what each container of the namespace has used, by the names of its pod and of itself.

        The kubelet measures each container every ten to twenty seconds, and says when. A container that it has not
        measured yet is left out.
        """
        [node] = self.get("nodes")["items"]
        path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary"
        return {
            (pod["podRef"]["name"], container["name"]): Usage(
                datetime.fromisoformat(container["cpu"]["time"]),
                container["cpu"]["usageCoreNanoSeconds"] / 1e9,
                container["memory"]["workingSetBytes"] / (1 << 20),
            )
            for pod in json.loads(self.kubectl("get", "--raw", path))["pods"]
            if pod["podRef"]["namespace"] == NAMESPACE
            for container in pod["containers"]
            if "usageCoreNanoSeconds" in container["cpu"] and "workingSetBytes" in container.get("memory", {})
        }

    def killed_for_memory(self) -> list[str]:
        return [
            f"{pod['metadata']['name']}: {container['name']}"
            for pod in self.get("pods")["items"]
            for container in pod["status"].get("containerStatuses", [])
            if container.get("lastState", {}).get("terminated", {}).get("reason") == "OOMKilled"
        ]

    def events(self, pod: str) -> str:
        """What Kubernetes says about a pod, one event a line."""
        chosen = ("-n", NAMESPACE, "get", "events", "--field-selector", f"involvedObject.name={pod}")
        return self.kubectl(*chosen, "-o", 'jsonpath={range .items[*]}{.reason}: {.message}{"\\n"}{end}')

    def curl(self, *arguments: str) -> str:
        return self._run("in-node", "curl", "--silent", "--show-error", "--max-time", "30", *arguments)

    def _run(
        self,
        script: str,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        seconds: float = _COMMAND_SECONDS,
        environment: dict[str, str] | None = None,
    ) -> str:
        return self._end(script, *arguments, stdin=stdin, check=check, seconds=seconds, environment=environment).stdout

    def _end(
        self,
        script: str,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        seconds: float = _COMMAND_SECONDS,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [str(self.lab / script), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env={**os.environ, **(environment or {})},
        )
        if check and ended.returncode:
            said = f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
            raise AssertionError(f"{script} {' '.join(arguments)} ended with {ended.returncode}:\n{said}")
        return ended


def wait_until(problem: Callable[[], str], seconds: float) -> None:
    """Wait until `problem` returns ''; else fail with what it returned last."""
    end = time.monotonic() + seconds
    while last := problem():
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds} s: {last}")
        time.sleep(1)


def unready(node: Node, since: str = "") -> str:
    """The pods that are not ready, and those that wait for one, with the reason as far as Kubernetes says it.

    `since`: an instant as Kubernetes writes it; pods whose containers run for longer are not ready either. After a
    power cut, Kubernetes believes for a while that all pods are as they were.
    """
    found = []
    for pod in node.get("pods")["items"]:
        status, name = pod["status"], pod["metadata"]["name"]
        conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
        started = [
            each["state"].get("running", {}).get("startedAt", since) for each in status.get("containerStatuses", [])
        ]
        is_ready = conditions.get("Ready") == "True" and all(at >= since for at in started)
        if status["phase"] == "Succeeded" or is_ready:
            continue
        if "job-name" in pod["metadata"].get("labels", {}) and status["phase"] == "Failed":
            continue  # the Job starts another
        found.append(f"{name} {status['phase']} {' '.join(_reasons(status))}".strip())
    for workload in node.get("deployments,statefulsets")["items"]:
        wanted = workload["spec"].get("replicas", 1)
        status = workload["status"]
        if status.get("readyReplicas", 0) < wanted or status.get("observedGeneration", 0) < _generation(workload):
            found.append(f"{workload['kind']} {workload['metadata']['name']}: {status.get('readyReplicas', 0)} ready")
    return "; ".join(found)


def _generation(workload: Any) -> int:
    return int(workload["metadata"]["generation"])


def _reasons(status: Any) -> Iterator[str]:
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        if not container["ready"]:
            for state in (container["state"], container.get("lastState", {})):
                yield from (each.get("reason", name) for name, each in state.items() if name != "running")


@contextmanager
def running(node: Node) -> Iterator[Node]:
    node.up()
    try:
        yield node
    finally:
        node.down()
