"""The rules that every workload keeps: each takes all objects of a build, and yields one sentence for each offence."""

from collections.abc import Callable, Iterator
from typing import Any

from services.runtime.http import OPEN_PATHS
from tests.kubernetes.objects import (
    NAMESPACE,
    NODE_NAMESPACE,
    Object,
    Workload,
    by_name,
    full_name,
    is_ours,
    namespace,
    of_kind,
    workloads,
)

Rule = Callable[[list[Object]], Iterator[str]]

DRAIN_SECONDS = 25
"""A process of the pipeline ends within this time after SIGTERM (services/local/supervision.py)."""

COMPONENTS = {"api", "sink", "store", "job", "monitoring"}
CALLS_THE_API = {"prometheus", "kube-state-metrics", "stream-to-lake", "realtime-aggregator", "airflow"}
"""Workloads that may call the API server of Kubernetes: to find targets, or to start pods."""

NODE_PORTS = {
    "generator": 30800,
    "query-api": 30801,
    "grafana": 30000,
    "stream-to-lake": 30082,
    "airflow": 30084,
    "namenode": 30870,
}
"""The ports of CONTRACT.md: existing clients, scripts and bookmarks use them."""

_CLUSTER_WIDE = {
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "PriorityClass",
    "StorageClass",
    "CustomResourceDefinition",
}


def requests_and_limits(objects: list[Object]) -> Iterator[str]:
    for workload in workloads(objects):
        for container in workload.containers:
            resources = container.get("resources", {})
            for side in ("requests", "limits"):
                for resource in ("cpu", "memory"):
                    if resource not in resources.get(side, {}):
                        yield f"{workload}: container {container['name']} has no {side} of {resource}"


def probes(objects: list[Object]) -> Iterator[str]:
    """Ready means that the container can serve. Alive must not: a dead dependency would restart every pod."""
    for workload in workloads(objects):
        for container in workload.long_running_containers:
            where = f"{workload}: container {container['name']}"
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if kind not in container:
                    yield f"{where} has no {kind}"
                    continue
                yield from _meaning(where, kind, container[kind])
            if is_ours(container):
                yield from _probes_of_ours(where, container, is_main=container is workload.pod["containers"][0])


def _meaning(where: str, kind: str, probe: Object) -> Iterator[str]:
    words = probe.get("exec", {}).get("command", ["something"])
    if words in (["true"], ["/bin/true"]) or words[0].endswith("echo"):
        yield f"{where}: its {kind} succeeds whatever the container does"


def _probes_of_ours(where: str, container: Object, *, is_main: bool) -> Iterator[str]:
    """A sidecar that is not ready must not take the main container out of its Service."""
    for kind, wanted in (("readinessProbe", "/readyz" if is_main else "/healthz"), ("livenessProbe", "/healthz")):
        path = container.get(kind, {}).get("httpGet", {}).get("path")
        if path != wanted:
            yield f"{where}: its {kind} asks for {path}, not {wanted}"
        elif path not in OPEN_PATHS:
            yield f"{where}: {path} needs a token"


def grace(objects: list[Object]) -> Iterator[str]:
    """A pod that is ended gets the time that it needs to end by itself."""
    for workload in workloads(objects):
        seconds = workload.pod.get("terminationGracePeriodSeconds")
        if seconds is None:
            yield f"{workload} has no terminationGracePeriodSeconds"
            continue
        if any(map(is_ours, workload.containers)):
            needed = DRAIN_SECONDS + max(map(_pre_stop_seconds, workload.containers))
            if seconds <= needed:
                yield f"{workload}: a grace of {seconds} s is not longer than the drain of {needed} s"


def _pre_stop_seconds(container: Object) -> int:
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
    return int(sleep.get("seconds", 0))


def security_context(objects: list[Object]) -> Iterator[str]:
    """The restricted Pod Security Standard, and a root file system that cannot be written."""
    for workload in workloads(objects):
        pod = workload.pod.get("securityContext", {})
        if workload.namespace != NODE_NAMESPACE:
            yield from _host(workload)
        for container in workload.containers:
            own = container.get("securityContext", {})
            where = f"{workload}: container {container['name']}"
            if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
                yield f"{where} may run as root"
            if not own.get("runAsUser", pod.get("runAsUser")):
                yield f"{where} has no user id: Kubernetes cannot tell that a user known by name is not root"
            if own.get("seccompProfile", pod.get("seccompProfile")) != {"type": "RuntimeDefault"}:
                yield f"{where} has no seccomp profile RuntimeDefault"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{where} may write its root file system"
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                yield f"{where} may gain privileges"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where} keeps capabilities"


def _host(workload: Workload) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if workload.pod.get(field):
            yield f"{workload} uses {field}"
    for volume in workload.pod.get("volumes", []):
        if "hostPath" in volume:
            yield f"{workload}: volume {volume['name']} is a folder of the node"
    for container in workload.containers:
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{workload}: container {container['name']} takes a port of the node"


def service_account(objects: list[Object]) -> Iterator[str]:
    users: dict[tuple[str, str], Workload] = {}
    for workload in workloads(objects):
        name = workload.pod.get("serviceAccountName", "default")
        if name == "default":
            yield f"{workload} has no service account of its own"
            continue
        if (other := users.setdefault((workload.namespace, name), workload)) is not workload:
            yield f"{workload} shares the service account {name} with {other}"
        account = by_name(objects, "ServiceAccount", workload.namespace).get(name)
        if account is None:
            yield f"{workload}: there is no service account {name}"
            continue
        by_default = account.get("automountServiceAccountToken", True)
        if workload.pod.get("automountServiceAccountToken", by_default) and workload.name not in CALLS_THE_API:
            yield f"{workload} gets a token of the API server, which it does not use"


def service_links(objects: list[Object]) -> Iterator[str]:
    """A Service named kafka gives every pod a variable KAFKA_PORT, which Kafka's image takes for a setting."""
    for workload in workloads(objects):
        if workload.pod.get("enableServiceLinks") is not False:
            yield f"{workload} gets variables named after Services: set enableServiceLinks: false"


def disruption_budget(objects: list[Object]) -> Iterator[str]:
    budgets = list(of_kind(objects, "PodDisruptionBudget"))
    for workload in workloads(objects):
        if workload.kind not in ("Deployment", "StatefulSet"):
            continue
        mine = [
            each
            for each in budgets
            if namespace(each) == workload.namespace and workload.is_selected_by(each["spec"].get("selector"))
        ]
        if len(mine) != 1:
            yield f"{workload} has {len(mine)} PodDisruptionBudgets, not one"
        for budget in mine:
            if not _may_be_drained(budget["spec"], workload.object["spec"].get("replicas", 1)):
                yield f"{full_name(budget)} lets nobody drain a node that has a pod of {workload}"


def _may_be_drained(budget: Object, replicas: int) -> bool:
    if "maxUnavailable" in budget:
        return budget["maxUnavailable"] not in (0, "0%")
    least = budget.get("minAvailable", 0)
    return isinstance(least, str) or replicas > least


def topology_spread(objects: list[Object]) -> Iterator[str]:
    for workload in workloads(objects):
        if workload.kind not in ("Deployment", "StatefulSet"):
            continue
        constraints = workload.pod.get("topologySpreadConstraints", [])
        if not constraints:
            yield f"{workload} has no topologySpreadConstraints"
        for constraint in constraints:
            if not workload.is_selected_by(constraint.get("labelSelector")):
                yield f"{workload}: its topologySpreadConstraints count the pods of somebody else"


def claims(objects: list[Object]) -> Iterator[str]:
    """A store keeps its data when its pod is gone: in a claim of its own, mounted where it writes."""
    for workload in workloads(objects):
        if workload.component != "store":
            continue
        if workload.kind != "StatefulSet":
            yield f"{workload} is a store, and not a StatefulSet"
            continue
        names = [each["metadata"]["name"] for each in workload.object["spec"].get("volumeClaimTemplates", [])]
        mounted = {mount["name"] for each in workload.containers for mount in each.get("volumeMounts", [])}
        if not names:
            yield f"{workload} is a store without a volume claim"
        for name in names:
            if name not in mounted:
                yield f"{workload}: nothing mounts the claim {name}"


def labels(objects: list[Object]) -> Iterator[str]:
    for workload in workloads(objects):
        for key, wanted in (("name", {workload.name}), ("part-of", {NAMESPACE}), ("component", COMPONENTS)):
            value = workload.labels.get(f"app.kubernetes.io/{key}")
            if value not in wanted:
                yield f"{workload}: its pods have app.kubernetes.io/{key} {value}, not {' or '.join(sorted(wanted))}"


def namespaces(objects: list[Object]) -> Iterator[str]:
    known = {each["metadata"]["name"]: each["metadata"].get("labels", {}) for each in of_kind(objects, "Namespace")}
    for each in objects:
        if each["kind"] in _CLUSTER_WIDE:
            continue
        if namespace(each) not in known:
            yield f"{full_name(each)} is in namespace {namespace(each) or 'default'}, which nobody makes"
    if known.get(NAMESPACE, {}).get("pod-security.kubernetes.io/enforce") != "restricted":
        yield f"namespace {NAMESPACE} does not enforce the restricted Pod Security Standard"
    if extra := known.keys() - {NAMESPACE, NODE_NAMESPACE}:
        yield f"unexpected namespaces {sorted(extra)}"


def images(objects: list[Object]) -> Iterator[str]:
    """A tag that moves would change what runs when a pod moves to another node."""
    for workload in workloads(objects):
        for container in workload.containers:
            _, _, tag = container["image"].rpartition("/")[2].partition(":")
            if not tag or tag == "latest":
                yield f"{workload}: image {container['image']} names no version"
            if container.get("imagePullPolicy", "IfNotPresent") != "IfNotPresent":
                yield f"{workload}: image {container['image']} is pulled at each start"


def jobs(objects: list[Object]) -> Iterator[str]:
    for workload in workloads(objects):
        if workload.is_long_running:
            continue
        spec = workload.object["spec"]
        if workload.kind == "CronJob":
            if spec.get("concurrencyPolicy") != "Forbid":
                yield f"{workload} may run twice at once"
            if "suspend" not in spec:
                yield f"{workload} stays suspended once it was: `kubectl apply` changes only what a manifest states"
            spec = spec["jobTemplate"]["spec"]
            if "activeDeadlineSeconds" not in spec:
                yield f"{workload} has no deadline, and one run that hangs keeps the next ones from starting"
        if "backoffLimit" not in spec:
            yield f"{workload} does not say how often it is tried"
        if workload.pod.get("restartPolicy") not in ("Never", "OnFailure"):
            yield f"{workload} has no restartPolicy Never or OnFailure"


def one_writer(objects: list[Object]) -> Iterator[str]:
    """Two drivers must not run during a roll: a StatefulSet ends the old pod first, a Deployment may not."""
    for workload in workloads(objects):
        drives = any("spark-jobs" in container["image"] for container in workload.pod["containers"])
        is_one = workload.kind == "StatefulSet" and workload.object["spec"].get("replicas", 1) <= 1
        if drives and workload.is_long_running and not is_one:
            yield f"{workload} drives Spark, and is not a StatefulSet of one pod"


def node_ports(objects: list[Object]) -> Iterator[str]:
    taken: dict[int, list[Object]] = {}
    for service in of_kind(objects, "Service"):
        for port in service["spec"].get("ports", []):
            if "nodePort" in port:
                taken.setdefault(port["nodePort"], []).append(service)
    for number, services in taken.items():
        if len(services) > 1:
            yield f"{' and '.join(map(full_name, services))} want the same port {number} of the node"
    for workload in workloads(objects):
        number = NODE_PORTS.get(workload.name, 0)
        if number and not any(
            workload.is_selected_by({"matchLabels": service["spec"].get("selector", {})})
            for service in taken.get(number, [])
        ):
            yield f"no Service of {workload} has the port {number} of the node"


def autoscaling(objects: list[Object]) -> Iterator[str]:
    """A Deployment that an autoscaler scales states no number of pods: each `apply` would set that number again."""
    known: dict[tuple[str, str], Workload] = {(each.kind, each.name): each for each in workloads(objects)}
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        target: Any = scaler["spec"]["scaleTargetRef"]
        workload = known.get((target["kind"], target["name"]))
        if workload is None:
            yield f"{full_name(scaler)} scales {target['kind']} {target['name']}, which does not exist"
        elif "replicas" in workload.object["spec"]:
            yield f"{workload} states its replicas, which {full_name(scaler)} decides"


RULES: list[Rule] = [
    requests_and_limits,
    probes,
    grace,
    security_context,
    service_account,
    service_links,
    disruption_budget,
    topology_spread,
    claims,
    labels,
    namespaces,
    images,
    jobs,
    one_writer,
    node_ports,
    autoscaling,
]
