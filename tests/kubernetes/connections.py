"""How many sessions in PostgreSQL the pods of a build may open at the same time, and how many PostgreSQL accepts.

Each pod's most sessions are an annotation of its template. Autoscalers bound the number of pods, and a rolling update
adds some for a while.
"""

from collections.abc import Iterator
from math import ceil
from typing import Any

import yaml

from tests.kubernetes.objects import Object, Workload, of_kind, workloads

ANNOTATION = "log-pipeline/postgres-connections"


def needed(objects: list[Object]) -> dict[str, int]:
    """Sessions of all pods of each workload that has the annotation."""
    most = {w.name: _per_pod(w.template) * _most_pods(objects, w) for w in workloads(objects) if _per_pod(w.template)}
    if task := _data(objects, "airflow-task-pod").get("task-pod.yaml"):
        at_once = int(_data(objects, "airflow-settings")["AIRFLOW__CORE__PARALLELISM"])
        most["airflow-task"] = at_once * _per_pod(yaml.safe_load(task))
    return most


def accepted(objects: list[Object]) -> int:
    """Sessions that others than superusers may have."""
    files = _data(objects, "postgres-settings")
    lines = (files["postgresql.conf"] + "\n" + files.get("overlay.conf", "")).splitlines()
    settings = dict(line.split(" = ") for line in lines if " = " in line and not line.startswith("#"))
    return int(settings["max_connections"]) - int(settings["superuser_reserved_connections"])


def unannotated(objects: list[Object]) -> Iterator[str]:
    """The workloads that are told the address of PostgreSQL and do not say how many sessions they open."""
    for workload in workloads(objects):
        names = {variable["name"] for container in workload.containers for variable in container.get("env", [])}
        if names & {"LOGPIPE_POSTGRES_URL", "PGHOST"} and not _per_pod(workload.template):
            yield str(workload)


def _per_pod(template: Object) -> int:
    return int((template["metadata"].get("annotations") or {}).get(ANNOTATION, 0))


def _most_pods(objects: list[Object], workload: Workload) -> int:
    spec = workload.object["spec"]
    limits = {
        (scaler["spec"]["scaleTargetRef"]["kind"], scaler["spec"]["scaleTargetRef"]["name"]): scaler["spec"]
        for scaler in of_kind(objects, "HorizontalPodAutoscaler")
    }
    scaler = limits.get((workload.kind, workload.name))
    pods = int(scaler["maxReplicas"] if scaler else spec.get("replicas", 1))
    strategy = spec.get("strategy", {})
    if workload.kind != "Deployment" or strategy.get("type") == "Recreate":
        return pods
    surge: Any = strategy.get("rollingUpdate", {}).get("maxSurge", "25%")
    return pods + (surge if isinstance(surge, int) else ceil(pods * int(surge.rstrip("%")) / 100))


def _data(objects: list[Object], name: str) -> dict[str, str]:
    """The data of the ConfigMap of this name, which may end with a hash."""
    for each in of_kind(objects, "ConfigMap"):
        if each["metadata"]["name"] == name or each["metadata"]["name"].rpartition("-")[0] == name:
            found: dict[str, str] = each["data"]
            return found
    return {}
