"""The rules themselves: a small system keeps them all, and each planted mistake is found."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes import flows, ours, references, rules, safekeeping
from tests.kubernetes.objects import Object

GOOD: list[Object] = yaml.safe_load(Path(__file__).with_name("good.yaml").read_text())
ALL_RULES = [
    *rules.RULES,
    *references.RULES,
    *references.RULES_OF_ALL,
    *flows.RULES,
    *ours.RULES,
    *safekeeping.RULES,
]


class System:
    """A copy of the good system, to plant a mistake in."""

    def __init__(self) -> None:
        self.objects: list[Object] = copy.deepcopy(GOOD)

    def get(self, kind: str, name: str) -> Any:
        return next(each for each in self.objects if each["kind"] == kind and each["metadata"]["name"] == name)

    def drop(self, kind: str, name: str) -> None:
        self.objects.remove(self.get(kind, name))

    def pod(self, name: str) -> Any:
        kind = {"postgres": "StatefulSet", "kafka": "StatefulSet"}.get(name, "Deployment")
        return self.get(kind, name)["spec"]["template"]["spec"]

    def container(self, name: str) -> Any:
        return self.pod(name)["containers"][0]

    def variable(self, name: str, variable: str) -> Any:
        return next(each for each in self.container(name)["env"] if each["name"] == variable)


def _set(path: str, value: Any) -> Callable[[Any], None]:
    """Sets what a path of keys leads to; with the value `...`, deletes it."""
    keys: list[Any] = [int(key) if key.isdigit() else key.replace("~", "/") for key in path.split("/")]

    def change(target: Any) -> None:
        for key in keys[:-1]:
            target = target[key]
        if value is ...:
            del target[keys[-1]]
        else:
            target[keys[-1]] = value

    return change


def in_container(path: str, value: Any, name: str = "generator") -> Callable[[System], object]:
    return lambda system: _set(path, value)(system.container(name))


def in_pod(path: str, value: Any, name: str = "generator") -> Callable[[System], object]:
    return lambda system: _set(path, value)(system.pod(name))


def in_object(kind: str, name: str, path: str, value: Any) -> Callable[[System], object]:
    return lambda system: _set(path, value)(system.get(kind, name))


def in_variable(variable: str, value: str, name: str = "generator") -> Callable[[System], object]:
    return lambda system: _set("value", value)(system.variable(name, variable))


def dropped(kind: str, name: str) -> Callable[[System], object]:
    return lambda system: system.drop(kind, name)


def added(**variable: Any) -> Callable[[System], object]:
    return lambda system: system.container("generator")["env"].append(variable)


VERIFY = "spec/jobTemplate/spec"
PLANTED: list[tuple[rules.Rule, Callable[[System], object], str]] = [
    (rules.requests_and_limits, in_container("resources/limits/memory", ...), "no limits of memory"),
    (rules.requests_and_limits, in_container("resources", ...), "no requests of cpu"),
    (rules.probes, in_container("startupProbe", ..., "kafka"), "has no startupProbe"),
    (rules.probes, in_container("livenessProbe", {"exec": {"command": ["true"]}}, "kafka"), "succeeds whatever"),
    (rules.probes, in_container("livenessProbe/httpGet/path", "/readyz"), "not /healthz"),
    (rules.grace, in_pod("terminationGracePeriodSeconds", ..., "kafka"), "no terminationGracePeriodSeconds"),
    (rules.grace, in_pod("terminationGracePeriodSeconds", 30), "not longer than the drain of 30 s"),
    (rules.security_context, in_pod("securityContext/runAsNonRoot", ...), "may run as root"),
    (rules.security_context, in_pod("securityContext/runAsUser", ...), "has no user id"),
    (rules.security_context, in_pod("securityContext/seccompProfile", ...), "no seccomp profile"),
    (rules.security_context, in_container("securityContext/readOnlyRootFilesystem", ...), "write its root"),
    (rules.security_context, in_container("securityContext/allowPrivilegeEscalation", ...), "gain privileges"),
    (rules.security_context, in_container("securityContext/capabilities", {"add": ["ALL"]}), "keeps capabilities"),
    (rules.security_context, in_pod("hostNetwork", True), "uses hostNetwork"),
    (rules.security_context, in_pod("volumes/0", {"name": "tmp", "hostPath": {"path": "/"}}), "folder of the node"),
    (rules.security_context, in_container("ports/0/hostPort", 80), "port of the node"),
    (rules.service_account, in_pod("serviceAccountName", ...), "no service account of its own"),
    (rules.service_account, in_pod("serviceAccountName", "kafka"), "shares the service account"),
    (rules.service_account, dropped("ServiceAccount", "kafka"), "there is no service account kafka"),
    (rules.service_account, in_pod("automountServiceAccountToken", True), "gets a token"),
    (rules.service_links, in_pod("enableServiceLinks", ...), "variables named after Services"),
    (rules.disruption_budget, dropped("PodDisruptionBudget", "kafka"), "has 0 PodDisruptionBudgets"),
    (rules.disruption_budget, in_object("PodDisruptionBudget", "kafka", "spec/maxUnavailable", 0), "lets nobody drain"),
    (
        rules.disruption_budget,
        in_object("PodDisruptionBudget", "kafka", "spec", {"minAvailable": 1, "selector": {}}),
        "has 2 PodDisruptionBudgets",
    ),
    (rules.topology_spread, in_pod("topologySpreadConstraints", []), "no topologySpreadConstraints"),
    (
        rules.topology_spread,
        in_pod("topologySpreadConstraints/0/labelSelector/matchLabels", {"app.kubernetes.io/name": "kafka"}),
        "pods of somebody else",
    ),
    (rules.claims, in_object("StatefulSet", "kafka", "spec/volumeClaimTemplates", []), "without a volume claim"),
    (rules.claims, in_object("StatefulSet", "kafka", "kind", "Deployment"), "not a StatefulSet"),
    (rules.claims, in_container("volumeMounts", [], "kafka"), "nothing mounts the claim data"),
    (
        rules.labels,
        in_object("Deployment", "generator", "spec/template/metadata/labels/app.kubernetes.io~component", "tool"),
        "app.kubernetes.io/component tool",
    ),
    (rules.namespaces, in_object("Service", "kafka", "metadata/namespace", ...), "namespace default"),
    (rules.namespaces, in_object("Namespace", "log-pipeline", "metadata/labels", {}), "does not enforce"),
    (rules.images, in_container("image", "log-pipeline/services"), "names no version"),
    (rules.images, in_container("image", "registry.example.org:5000/redis:latest"), "names no version"),
    (rules.images, in_container("imagePullPolicy", "Always"), "pulled at each start"),
    (rules.jobs, in_object("CronJob", "verify", "spec/concurrencyPolicy", ...), "may run twice"),
    (rules.jobs, in_object("CronJob", "verify", f"{VERIFY}/backoffLimit", ...), "how often it is tried"),
    (rules.jobs, in_object("CronJob", "verify", f"{VERIFY}/template/spec/restartPolicy", "Always"), "restartPolicy"),
    (rules.jobs, in_object("CronJob", "verify", "spec/suspend", ...), "stays suspended once it was"),
    (rules.jobs, in_object("CronJob", "verify", f"{VERIFY}/activeDeadlineSeconds", ...), "has no deadline"),
    (rules.one_writer, in_container("image", "log-pipeline/spark-jobs:1"), "not a StatefulSet of one pod"),
    (rules.probes, lambda system: system.pod("kafka")["containers"].append(system.container("generator")), "/healthz"),
    (rules.node_ports, in_object("Service", "generator", "spec/ports/0/nodePort", 30801), "has the port 30800"),
    (rules.node_ports, in_object("Service", "kafka", "spec/ports/0/nodePort", 30800), "want the same port"),
    (rules.autoscaling, in_object("Deployment", "ingest-api", "spec/replicas", 2), "states its replicas"),
    (
        rules.autoscaling,
        in_object("HorizontalPodAutoscaler", "ingest-api", "spec/scaleTargetRef/name", "ingest"),
        "does not exist",
    ),
    (references.keys_exist, dropped("ConfigMap", "postgres-settings"), "no ConfigMap postgres-settings"),
    (references.keys_exist, in_object("Secret", "logpipe-secrets", "data/LOGPIPE_TOKEN", ...), "no key LOGPIPE_TOKEN"),
    (references.keys_exist, in_container("envFrom/0/configMapRef/name", "settings"), "no ConfigMap settings"),
    (references.keys_are_used, in_object("Secret", "logpipe-secrets", "data/OLD", "eA=="), "nobody uses the key OLD"),
    (references.keys_are_used, in_pod("volumes", [], "postgres"), "nobody uses the key postgresql.conf"),
    (references.volumes, in_container("volumeMounts/0/name", "temp"), "there is no volume temp"),
    (references.volumes, in_container("volumeMounts", []), "nothing mounts the volume tmp"),
    (
        references.volumes,
        in_pod("volumes/0", {"name": "tmp", "persistentVolumeClaim": {"claimName": "data"}}),
        "there is no claim data",
    ),
    (
        references.expansions,
        lambda system: system.container("ingest-api")["env"].reverse(),
        "uses $(POSTGRES_PASSWORD), which is not defined before it",
    ),
    (references.expansions, in_container("args", ["generator", "$(NAME)"]), "uses $(NAME)"),
    (references.probed_ports, in_container("livenessProbe/httpGet/port", 8080), "asks port 8080"),
    (references.services, in_object("Service", "kafka", "spec/selector/app.kubernetes.io~name", "k"), "selects 0"),
    (
        references.services,
        in_object("Service", "kafka", "spec/selector", {"app.kubernetes.io/component": "store"}),
        "selects 2 workloads",
    ),
    (references.services, in_object("Service", "kafka", "spec/ports/0/targetPort", "http"), "declares no port http"),
    (references.services, in_object("Service", "kafka", "spec/ports/0/port", 80), "port 80 leads to port 9092"),
    (references.governing_services, dropped("Service", "kafka-nodes"), "there is no Service kafka-nodes"),
    (
        references.governing_services,
        lambda system: (
            system.get("Service", "postgres")["spec"].pop("clusterIP"),
            system.get("StatefulSet", "postgres")["spec"].update(replicas=2),
        ),
        "not headless",
    ),
    (
        references.policies_select_somebody,
        in_object("NetworkPolicy", "verify", "spec/podSelector/matchLabels", {"app": "verify"}),
        "NetworkPolicy verify selects no pod",
    ),
    (
        references.selectors,
        in_object("PodDisruptionBudget", "kafka", "spec/selector/matchLabels", {"app": "kafka"}),
        "PodDisruptionBudget kafka selects no pod",
    ),
    (
        references.selectors,
        in_object("Deployment", "generator", "spec/selector/matchLabels", {"app": "generator"}),
        "does not select its own pods",
    ),
    (references.roles, dropped("Role", "prometheus"), "there is no Role prometheus"),
    (references.roles, in_object("RoleBinding", "prometheus", "subjects/0/name", "default"), "account default"),
    (flows.addresses_lead_to_services, in_variable("LOGPIPE_INGEST_URL", "http://ingest:8081"), "ingest:8081"),
    (flows.addresses_lead_to_services, in_variable("LOGPIPE_INGEST_URL", "http://ingest-api:80"), "no port 80"),
    (flows.policies_deny_by_default, dropped("NetworkPolicy", "deny"), "denies what the others do not allow"),
    (
        flows.policies_allow_what_is_called,
        in_object("NetworkPolicy", "generator", "spec/egress/0/ports/0/port", 8080),
        "egress of Deployment generator to Deployment ingest-api, port 8081",
    ),
    (
        flows.policies_allow_what_is_called,
        in_object("NetworkPolicy", "stores", "spec/ingress", []),
        "ingress of CronJob verify to StatefulSet postgres, port 5432",
    ),
    (
        flows.policies_allow_what_is_called,
        in_object("NetworkPolicy", "prometheus", "spec/egress", []),
        "egress of Deployment prometheus to StatefulSet postgres, port 9187",
    ),
    (flows.policies_allow_the_cluster, dropped("NetworkPolicy", "names"), "resolve names"),
    (
        flows.policies_allow_the_cluster,
        in_object("NetworkPolicy", "prometheus", "spec/egress/1/ports", [{"port": 8080}]),
        "call the API server",
    ),
    (flows.policies_allow_the_cluster, in_object("NetworkPolicy", "generator", "spec/ingress", []), "from outside"),
    (ours.images, in_container("image", "log-pipeline/generator:1"), "nothing builds the image"),
    (ours.commands, in_container("args", ["generate"]), "runs 'generate'"),
    (ours.names_of_settings, added(name="LOGPIPE_INGEST_PORT", value="8081"), "no setting LOGPIPE_INGEST_PORT"),
    (
        ours.names_of_settings,
        in_object("ConfigMap", "logpipe-settings", "data/LOGPIPE_KAFKA", "kafka:9092"),
        "no process has a setting LOGPIPE_KAFKA",
    ),
    (ours.values_of_settings, added(name="LOGPIPE_GENERATOR_SEED", value="many"), "generator_seed"),
    (ours.values_of_settings, added(name="LOGPIPE_GENERATOR_PORT", value="30802"), "listens on port 30802"),
    (ours.values_of_settings, added(name="LOGPIPE_HOST", value="127.0.0.1"), "listens on 127.0.0.1"),
    (ours.values_of_settings, in_container("env/1", {"name": "A", "value": "b"}), "without a token"),
    (ours.allowed_hosts, in_variable("LOGPIPE_ALLOWED_HOSTS", "ingest", "ingest-api"), "refuses requests for the host"),
    (ours.tokens, in_container("env/1", {"name": "A", "value": "b"}), "without LOGPIPE_TOKEN"),
    (ours.dockerfiles, in_pod("securityContext/runAsUser", 4711), "runs as user 4711"),
    (
        safekeeping.exporters,
        added(name="DATA_SOURCE_URI", value="127.0.0.1:5432/logpipe?sslmode=disable"),
        "keeps a session in database logpipe",
    ),
    (
        safekeeping.room_for_backups,
        lambda system: system.objects.append(
            {
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "backup-postgres", "namespace": "log-pipeline"},
                "spec": {"resources": {"requests": {"storage": "0Gi"}}},
            }
        ),
        "less than 1 times the volume of postgres",
    ),
    (
        safekeeping.hidden_keys,
        in_object(
            "ConfigMap",
            "postgres-settings",
            "data/hdfs-site.xml",
            "<c><property><name>header</name><value>X-${env.SECRET}</value></property></c>",
        ),
        "header has a secret",
    ),
]


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: str(rule.__name__))
def test_a_good_system_keeps_the_rule(rule: rules.Rule) -> None:
    assert list(rule(GOOD)) == []


@pytest.mark.parametrize(
    ("rule", "plant", "found"),
    PLANTED,
    ids=[re.sub(r"[^a-z0-9]+", "-", f"{rule.__name__}-{found}".lower()) for rule, _, found in PLANTED],
)
def test_a_planted_mistake_is_found(rule: rules.Rule, plant: Callable[[System], object], found: str) -> None:
    system = System()
    plant(system)
    assert found in "\n".join(rule(system.objects))


def test_each_rule_has_a_planted_mistake() -> None:
    assert {rule.__name__ for rule, _, _ in PLANTED} == {rule.__name__ for rule in ALL_RULES}
