"""Built objects as the rules read them: workloads with their pods and containers, and the objects of a kind by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

NAMESPACE = "log-pipeline"
NODE_NAMESPACE = "log-pipeline-node"
"""The namespace of what must see the node itself, and therefore cannot meet the restricted Pod Security Standard."""

_RUNNING = ("Deployment", "StatefulSet", "DaemonSet")
_ENDING = ("Job", "CronJob")


@dataclass(frozen=True)
class Workload:
    """An object that makes pods."""

    object: Object

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def __hash__(self) -> int:
        return hash((self.kind, self.namespace, self.name))

    @property
    def kind(self) -> str:
        return str(self.object["kind"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return namespace(self.object)

    @property
    def is_long_running(self) -> bool:
        return self.kind in _RUNNING

    @property
    def template(self) -> Object:
        spec = self.object["spec"]
        found: Object = (spec["jobTemplate"]["spec"] if self.kind == "CronJob" else spec)["template"]
        return found

    @property
    def pod(self) -> Object:
        found: Object = self.template["spec"]
        return found

    @property
    def labels(self) -> dict[str, str]:
        return self.template.get("metadata", {}).get("labels") or {}

    @property
    def component(self) -> str:
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def containers(self) -> list[Object]:
        """All containers, those that run before the others included."""
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def long_running_containers(self) -> list[Object]:
        """The containers that run as long as the pod does: an init container that is always restarted is a sidecar."""
        if not self.is_long_running:
            return []
        sidecars = [each for each in self.pod.get("initContainers", []) if each.get("restartPolicy") == "Always"]
        return [*sidecars, *self.pod["containers"]]

    def is_selected_by(self, selector: Object | None) -> bool:
        """Whether a label selector selects the pods of this workload. An empty selector selects all pods."""
        selector = selector or {}
        wanted = selector.get("matchLabels", {}).items()
        return wanted <= self.labels.items() and all(
            _fulfils(self.labels, each) for each in selector.get("matchExpressions", [])
        )


def _fulfils(labels: dict[str, str], expression: Object) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values", [])
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise AssertionError(f"unknown operator {expression['operator']}")


def namespace(each: Object) -> str:
    return str(each["metadata"].get("namespace", ""))


def full_name(each: Object) -> str:
    return f"{each['kind']} {each['metadata']['name']}"


def of_kind(objects: list[Object], kind: str) -> Iterator[Object]:
    return (each for each in objects if each["kind"] == kind)


def by_name(objects: list[Object], kind: str, in_namespace: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in of_kind(objects, kind) if namespace(each) == in_namespace}


def workloads(objects: list[Object]) -> list[Workload]:
    return [Workload(each) for each in objects if each["kind"] in (*_RUNNING, *_ENDING)]


def is_ours(container: Object) -> bool:
    """Whether the container has an image that is built from this repository."""
    return str(container["image"]).startswith("log-pipeline/")


def words(container: Object) -> list[str]:
    """The command line of a container, as far as the manifest says it."""
    return [str(word) for word in (*container.get("command", []), *container.get("args", []))]


def our_command(container: Object) -> str:
    """The command of `logpipe` that a container of ours runs, '' if none. The image's entry point is logpipe."""
    found = [word for word in words(container) if word != "logpipe" and not word.endswith("/logpipe")]
    return found[0] if found else ""
