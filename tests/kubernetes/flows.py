"""Who calls whom: addresses in variables, command lines and configuration files lead to a Service and one of its ports,
and the network policies let the call through on both ends. Rules as in rules.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.cli import COMMANDS
from tests.kubernetes import environment, process_settings
from tests.kubernetes.environment import Variable
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
    our_command,
    words,
    workloads,
)
from tests.kubernetes.references import container_ports, selected
from tests.kubernetes.rules import CALLS_THE_API, NODE_PORTS, Rule

_ADDRESS = re.compile(r"(?<![\w.-])([a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*):([0-9]{2,5})(?![\w])")
_OF_THIS_MACHINE = {"localhost"}
_FOLLOWS = {"namenode": ("datanode", 9866)}
"""Whoever calls the one also calls the other: the NameNode answers with the addresses of DataNodes."""

_NOT_CALLED = {("datanode", "namenode", 9870), ("backup-postgres", "kafka", 9092)}
"""Addresses in a file or in a room's settings that several workloads share, and that this one does not use: (client,
host, port). Of the room of `logpipe backup` and `logpipe restore`, only the latter calls Kafka."""


@dataclass(frozen=True, slots=True)
class Flow:
    """`host`: the name that the client uses."""

    client: Workload
    target: Workload
    port: int
    host: str = ""

    def __str__(self) -> str:
        return f"{self.client} to {self.target}, port {self.port}"


def addresses(objects: list[Object]) -> Iterator[tuple[Workload, str, int]]:
    """(client, host, port) of every address of another pod in what a workload is configured with."""
    for workload in workloads(objects):
        for host, port in sorted({found for text in _texts(objects, workload) for found in _ADDRESS.findall(text)}):
            if host not in _OF_THIS_MACHINE and (workload.name, host, int(port)) not in _NOT_CALLED:
                yield workload, host, int(port)


def _texts(objects: list[Object], workload: Workload) -> Iterator[str]:
    """A template of a pod, as Airflow has it, configures another pod."""
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
    for container in workload.containers:
        known = environment.variables(objects, workload, container)
        yield from (variable.value for name, variable in known.items() if _is_used(container, name, variable))
        yield from (environment.expanded(word, known) for word in words(container))
        for mount in container.get("volumeMounts", []):
            name = volumes.get(mount["name"], {}).get("configMap", {}).get("name")
            if source := by_name(objects, "ConfigMap", workload.namespace).get(name or ""):
                yield from (text for text in environment.contents(source).values() if "kind: Pod" not in text)


def _is_used(container: Object, name: str, variable: Variable) -> bool:
    """Variables that come with a shared ConfigMap are used only by the processes that have this setting."""
    if variable.own or not is_ours(container):
        return name != "LOGPIPE_ALLOWED_HOSTS"
    command = our_command(container)
    is_one_store = command == "stream-to-store" and name == "LOGPIPE_HDFS_URL"
    return command in COMMANDS and name in process_settings.variables(command) and not is_one_store


def _service(objects: list[Object], client: Workload, host: str) -> Object | None:
    """The Service that a host name leads to: `service`, `pod.service`, each with or without namespace and domain."""
    labels = re.sub(r"\.svc(\.cluster\.local)?$", "", host).split(".")
    known = {(namespace(each), each["metadata"]["name"]): each for each in of_kind(objects, "Service")}
    for index in range(min(2, len(labels))):
        in_namespace = labels[index + 1] if len(labels) > index + 1 else client.namespace
        if found := known.get((in_namespace, labels[index])):
            return found
    return None


def addresses_lead_to_services(objects: list[Object]) -> Iterator[str]:
    for client, host, port in addresses(objects):
        service = _service(objects, client, host)
        if service is None:
            if _is_url_of_ours(objects, client, f"{host}:{port}"):
                yield f"{client}: there is no Service for {host}:{port}"
        elif port not in {each["port"] for each in service["spec"]["ports"]}:
            yield f"{client}: {full_name(service)} has no port {port}"


def _is_url_of_ours(objects: list[Object], client: Workload, address: str) -> bool:
    return any(
        address in variable.value
        for container in client.containers
        if is_ours(container)
        for name, variable in environment.variables(objects, client, container).items()
        if name.startswith("LOGPIPE_") and name.endswith("_URL")
    )


def flows(objects: list[Object]) -> set[Flow]:
    found: set[Flow] = set()
    for client, host, port in addresses(objects):
        if (service := _service(objects, client, host)) and (targets := selected(objects, service)):
            if targets[0] == client and len(host.split(".")) == 1:
                continue  # its own name, to advertise
            found.add(Flow(client, targets[0], port, host))
            name, other_port = _FOLLOWS.get(targets[0].name, ("", 0))
            found |= {Flow(client, each, other_port) for each in workloads(objects) if each.name == name}
    return found | set(_scrapes(objects))


def _scrapes(objects: list[Object]) -> Iterator[Flow]:
    """Prometheus asks every port named metrics, and the port http of our own processes."""
    for prometheus in workloads(objects):
        if prometheus.name != "prometheus":
            continue
        for target in workloads(objects):
            if target.is_long_running and target.namespace == prometheus.namespace:
                ports = container_ports(target)
                names = ["metrics"] + ["http"] * (target.component in ("api", "sink", "job"))
                yield from (Flow(prometheus, target, ports[name]) for name in names if name in ports)


def policies_deny_by_default(objects: list[Object]) -> Iterator[str]:
    if not any(of_kind(objects, "NetworkPolicy")):
        return
    for each in {workload.namespace for workload in workloads(objects)} - {NODE_NAMESPACE}:
        closing = [
            policy
            for policy in of_kind(objects, "NetworkPolicy")
            if namespace(policy) == each
            and not any(policy["spec"].get("podSelector", {}).values())
            and set(policy["spec"].get("policyTypes", [])) == {"Ingress", "Egress"}
            and not policy["spec"].get("ingress")
            and not policy["spec"].get("egress")
        ]
        if not closing:
            yield f"namespace {each} has no network policy that denies what the others do not allow"


def policies_allow_what_is_called(objects: list[Object]) -> Iterator[str]:
    for flow in sorted(flows(objects), key=str):
        for direction, own, other in (("egress", flow.client, flow.target), ("ingress", flow.target, flow.client)):
            if not _allows(objects, direction, own, flow.target, other, flow.port):
                yield f"no network policy allows the {direction} of {flow}"


def policies_allow_the_cluster(objects: list[Object]) -> Iterator[str]:
    """Names are resolved by the cluster's DNS; some pods call the API server; clients come to the ports of the node."""
    for workload in workloads(objects):
        if workload.namespace != NAMESPACE or not _policies(objects, "Egress", workload):
            continue
        if not _opens(objects, "egress", workload, {53}):
            yield f"no network policy lets {workload} resolve names"
        if workload.name in CALLS_THE_API and not _opens(objects, "egress", workload, {443, 6443}):
            yield f"no network policy lets {workload} call the API server"
        if workload.name in NODE_PORTS and not _opens(objects, "ingress", workload, set(_served(objects, workload))):
            yield f"no network policy lets clients reach {workload} from outside of the cluster"


def _served(objects: list[Object], workload: Workload) -> Iterator[int]:
    """The ports that the node offers for this workload."""
    for service in of_kind(objects, "Service"):
        if workload in selected(objects, service):
            yield from (port["port"] for port in service["spec"]["ports"] if "nodePort" in port)


def _policies(objects: list[Object], kind: str, workload: Workload) -> list[Object]:
    return [
        policy
        for policy in of_kind(objects, "NetworkPolicy")
        if namespace(policy) == workload.namespace
        and kind in policy["spec"].get("policyTypes", ["Ingress"])
        and workload.is_selected_by(policy["spec"].get("podSelector"))
    ]


def _allows(objects: list[Object], direction: str, own: Workload, target: Workload, other: Workload, port: int) -> bool:
    """Whether the policies of `own` let it talk with `other`. Without any policy, everything is allowed."""
    policies = _policies(objects, direction.capitalize(), own)
    if not policies:
        return True
    side = "to" if direction == "egress" else "from"
    for rule in (rule for policy in policies for rule in policy["spec"].get(direction) or []):
        peers, ports = rule.get(side), rule.get("ports")
        meets_peer = not peers or any(_is_peer(objects, peer, own, other) for peer in peers)
        if meets_peer and (not ports or any(_is_port(each, target, port) for each in ports)):
            return True
    return False


def _is_peer(objects: list[Object], peer: Object, own: Workload, other: Workload) -> bool:
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        known = by_name(objects, "Namespace", "").get(other.namespace, {"metadata": {}})
        labels = known["metadata"].get("labels", {}) | {"kubernetes.io/metadata.name": other.namespace}
        if not peer["namespaceSelector"].get("matchLabels", {}).items() <= labels.items():
            return False
    elif own.namespace != other.namespace:
        return False
    return other.is_selected_by(peer.get("podSelector"))


def _is_port(rule: Object, target: Workload, port: int) -> bool:
    wanted = rule.get("port")
    if rule.get("protocol", "TCP") != "TCP":
        return False
    return wanted is None or container_ports(target).get(wanted, wanted) == port


def _opens(objects: list[Object], direction: str, workload: Workload, numbers: set[int]) -> bool:
    """Whether a rule opens one of these ports to peers that are no pods of ours."""
    side = "to" if direction == "egress" else "from"
    for policy in _policies(objects, direction.capitalize(), workload):
        for rule in policy["spec"].get(direction) or []:
            peers = rule.get(side)
            if peers and all(set(peer) == {"podSelector"} for peer in peers):
                continue
            ports = [
                container_ports(workload).get(each.get("port"), each.get("port")) for each in rule.get("ports", [])
            ]
            if not ports or numbers & set(ports):
                return True
    return False


RULES: list[Rule] = [
    addresses_lead_to_services,
    policies_deny_by_default,
    policies_allow_what_is_called,
    policies_allow_the_cluster,
]
