"""Whatever a manifest names exists on the other side: keys, volumes, ports, selected pods. Rules as in rules.py."""

from collections.abc import Iterator

from tests.kubernetes import environment
from tests.kubernetes.objects import Object, Workload, by_name, full_name, namespace, of_kind, words, workloads
from tests.kubernetes.rules import Rule

_MADE_BY_KUBERNETES = {("ConfigMap", "kube-root-ca.crt")}
_MADE_AT_RUN_TIME = {"airflow-task", "spark-executor"}
"""Names of pods that Airflow and Spark start, and of the policies for them."""


def keys_exist(objects: list[Object]) -> Iterator[str]:
    for workload in workloads(objects):
        for kind, name, key, is_optional in _uses(workload):
            if is_optional or (kind, name) in _MADE_BY_KUBERNETES:
                continue
            source = by_name(objects, kind, workload.namespace).get(name)
            if source is None:
                yield f"{workload}: there is no {kind} {name}"
            elif key is not None and key not in environment.contents(source):
                yield f"{workload}: {kind} {name} has no key {key}"


def keys_are_used(objects: list[Object]) -> Iterator[str]:
    """Of all components together: an overlay has the keys of components that it leaves out."""
    used: dict[tuple[str, str, str], set[str | None]] = {}
    for workload in workloads(objects):
        for kind, name, key, _ in _uses(workload):
            used.setdefault((workload.namespace, kind, name), set()).add(key)
    for kind in ("ConfigMap", "Secret"):
        for source in of_kind(objects, kind):
            users = used.get((namespace(source), kind, source["metadata"]["name"]), set())
            if None in users:
                continue
            for key in environment.contents(source).keys() - users:
                yield f"{full_name(source)}: nobody uses the key {key}"


def _uses(workload: Workload) -> Iterator[tuple[str, str, str | None, bool]]:
    """(kind, name, key or None for all keys, whether it may be absent) of every ConfigMap and Secret."""
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
    for container in workload.containers:
        yield from environment.references(container)
        for mount in container.get("volumeMounts", []):
            if mount["name"] in volumes:
                yield from _in_volume(volumes[mount["name"]], mount.get("subPath"))


def _in_volume(volume: Object, sub_path: str | None) -> Iterator[tuple[str, str, str | None, bool]]:
    for source in [volume, *volume.get("projected", {}).get("sources", [])]:
        for field, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
            found = source.get(field)
            if not found:
                continue
            name, is_optional = found.get("name") or found["secretName"], found.get("optional", False)
            keys = [item["key"] for item in found.get("items", [])] or [sub_path]
            yield from ((kind, name, key, is_optional) for key in keys)


def _claims(objects: list[Object], in_namespace: str) -> set[str]:
    """The names of claims, with those that StatefulSets make for the first of their pods."""
    made = {
        f"{template['metadata']['name']}-{each.name}-0"
        for each in workloads(objects)
        if each.namespace == in_namespace
        for template in each.object["spec"].get("volumeClaimTemplates", [])
    }
    return made | by_name(objects, "PersistentVolumeClaim", in_namespace).keys()


def volumes(objects: list[Object]) -> Iterator[str]:
    for workload in workloads(objects):
        declared = {each["name"] for each in workload.pod.get("volumes", [])}
        templates = workload.object["spec"].get("volumeClaimTemplates", [])
        known = declared | {each["metadata"]["name"] for each in templates}
        mounted = {mount["name"] for each in workload.containers for mount in each.get("volumeMounts", [])}
        for name in sorted(mounted - known):
            yield f"{workload}: there is no volume {name}"
        for name in sorted(declared - mounted):
            yield f"{workload}: nothing mounts the volume {name}"
        for volume in workload.pod.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in _claims(objects, workload.namespace):
                yield f"{workload}: there is no claim {claim}"


def expansions(objects: list[Object]) -> Iterator[str]:
    """The kubelet leaves $(NAME) as it stands when NAME is defined later, or not at all."""
    for workload in workloads(objects):
        for container in workload.containers:
            known = environment.variables(objects, workload, container)
            texts = [variable.value for variable in known.values()]
            texts += [environment.expanded(word, known) for word in words(container)]
            for name in sorted({name for text in texts for name in environment.unexpanded(text)}):
                yield f"{workload}: container {container['name']} uses $({name}), which is not defined before it"


def container_ports(workload: Workload) -> dict[str | int, int]:
    """The ports of the pods, by name and by number."""
    found: dict[str | int, int] = {}
    for container in workload.containers:
        for port in container.get("ports", []):
            number = port["containerPort"]
            found[number] = number
            if "name" in port:
                found[port["name"]] = number
    return found


def probed_ports(objects: list[Object]) -> Iterator[str]:
    for workload in workloads(objects):
        for container in workload.containers:
            alone = {"spec": {"template": {"spec": {"containers": [container]}}}}
            ports = container_ports(Workload({**workload.object, **alone}) if workload.kind != "CronJob" else workload)
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                for action in ("httpGet", "tcpSocket", "grpc"):
                    if action in probe and probe[action]["port"] not in ports:
                        yield f"{workload}: {kind} asks port {probe[action]['port']}, which no container declares"


def selected(objects: list[Object], service: Object) -> list[Workload]:
    """The long-running workloads whose pods a Service sends requests to."""
    selector = {"matchLabels": service["spec"].get("selector", {})}
    return [
        each
        for each in workloads(objects)
        if each.is_long_running and each.namespace == namespace(service) and each.is_selected_by(selector)
    ]


def services(objects: list[Object]) -> Iterator[str]:
    for service in of_kind(objects, "Service"):
        found = selected(objects, service) if service["spec"].get("selector") else []
        if len(found) != 1:
            yield f"{full_name(service)} selects {len(found)} workloads, not one: {', '.join(map(str, found))}"
            continue
        ports = container_ports(found[0])
        for port in service["spec"].get("ports", []):
            target = port.get("targetPort", port["port"])
            if target not in ports:
                yield f"{full_name(service)}: {found[0]} declares no port {target}"
            elif ports[target] != port["port"]:
                yield f"{full_name(service)}: port {port['port']} leads to port {ports[target]}: one number for both"


def governing_services(objects: list[Object]) -> Iterator[str]:
    for workload in workloads(objects):
        if workload.kind == "StatefulSet":
            name = workload.object["spec"].get("serviceName", "")
            service = by_name(objects, "Service", workload.namespace).get(name)
            if service is None:
                yield f"{workload}: there is no Service {name}, which gives its pods their names"
            elif service["spec"].get("clusterIP") != "None" and workload.object["spec"].get("replicas", 1) > 1:
                yield f"{workload}: Service {name} is not headless, so its pods cannot be told apart"


def selectors(objects: list[Object]) -> Iterator[str]:
    """A budget that selects nobody protects nobody."""
    for budget in of_kind(objects, "PodDisruptionBudget"):
        if not _selects_somebody(objects, budget, "selector"):
            yield f"{full_name(budget)} selects no pod"
    for workload in workloads(objects):
        if workload.is_long_running and not workload.is_selected_by(workload.object["spec"]["selector"]):
            yield f"{workload} does not select its own pods"


def policies_select_somebody(objects: list[Object]) -> Iterator[str]:
    """Of all components together: an overlay may have the policy of a component that it leaves out."""
    for policy in of_kind(objects, "NetworkPolicy"):
        is_known = policy["metadata"]["name"] in _MADE_AT_RUN_TIME
        if not is_known and not _selects_somebody(objects, policy, "podSelector"):
            yield f"{full_name(policy)} selects no pod"


def _selects_somebody(objects: list[Object], each: Object, field: str) -> bool:
    return any(
        workload.namespace == namespace(each) and workload.is_selected_by(each["spec"].get(field))
        for workload in workloads(objects)
    )


def roles(objects: list[Object]) -> Iterator[str]:
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        for binding in of_kind(objects, kind):
            role = binding["roleRef"]
            if not any(each["metadata"]["name"] == role["name"] for each in of_kind(objects, role["kind"])):
                yield f"{full_name(binding)}: there is no {role['kind']} {role['name']}"
            for subject in binding.get("subjects", []):
                in_namespace = subject.get("namespace", namespace(binding))
                if subject["name"] not in by_name(objects, "ServiceAccount", in_namespace):
                    yield f"{full_name(binding)}: there is no service account {subject['name']}"


RULES: list[Rule] = [
    keys_exist,
    volumes,
    expansions,
    probed_ports,
    services,
    governing_services,
    selectors,
    roles,
]

RULES_OF_ALL: list[Rule] = [keys_are_used, policies_select_somebody]
"""Rules that all components keep together, and one overlay may not."""
