"""Builds what the manifests name: our own images from their Dockerfiles, and a stand-in for each official image, since
the node of the tests pulls nothing. A stand-in has the same name, ports, user and commands as the official image.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node import Node

from services.local import jars
from services.local.settings import LocalSettings

Object = dict[str, Any]
Prepare = Callable[[Path, str], None]
"""Puts what a build needs into a folder, for one version of the image."""

ROOT = Path(__file__).parents[2]
IMAGES = Path(__file__).parent / "images"

_OURS = {"log-pipeline/services": "services/Dockerfile", "log-pipeline/spark-jobs": "spark_jobs/Dockerfile"}


def _lock(context: Path, tag: str) -> None:
    shutil.copy(ROOT / "requirements" / "lock.txt", context / "lock.txt")


def _jars(bundle: jars.Bundle) -> Prepare:
    def copy(context: Path, tag: str) -> None:
        shutil.copytree(jars.resolve(bundle), context / "jars")

    return copy


def _lock_and_services(context: Path, tag: str) -> None:
    _lock(context, tag)
    shutil.copytree(ROOT / "services", context / "services", ignore=shutil.ignore_patterns("__pycache__"))


def _airflow(context: Path, tag: str) -> None:
    shutil.copy(ROOT / "kubernetes" / "airflow" / "requirements.txt", context / "requirements.txt")


_TAGS = "remove_all_sd,enable_kubernetes_sd"
"""Of Prometheus: to discover pods is all that the manifests use, and the clients of all clouds take long to build."""


def _as_module(tag: str) -> str:
    """Return the version of Prometheus' Go module: v0.315.0 for the release v3.15.0."""
    major, minor, patch = tag.removeprefix("v").split(".")
    return f"v0.{major}{int(minor):02}.{patch}"


def _go_program(module: str, package: str, version: Callable[[str], str] = str) -> Prepare:
    """Build a program from the source of its module. `go install` would also ask for the list of all versions.

    `version`: the version of the module, by the tag of the image.
    """

    def build(context: Path, tag: str) -> None:
        command = ["go", "mod", "download", "-json", f"{module}@{version(tag)}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        with tempfile.TemporaryDirectory() as temporary:
            source = shutil.copytree(json.loads(said)["Dir"], Path(temporary) / "source")
            source.chmod(0o755)  # the cache of modules is read-only
            environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
            subprocess.run(
                ["go", "build", f"-tags={_TAGS}", "-o", f"{context}/", package], cwd=source, env=environment, check=True
            )

    return build


def _nothing(context: Path, tag: str) -> None:
    """Debian's packages are all that the image needs."""


STAND_INS: dict[str, tuple[str, Prepare]] = {
    "postgres": ("postgres", _lock),
    "apache/kafka": ("kafka", _jars(jars.KAFKA)),
    "apache/hadoop": ("hadoop", _jars(jars.HDFS)),
    "clickhouse/clickhouse-server": ("clickhouse", _lock_and_services),
    "redis": ("redis", _nothing),
    "apache/airflow": ("airflow", _airflow),
    "prom/prometheus": ("prometheus", _go_program("github.com/prometheus/prometheus", "./cmd/prometheus", _as_module)),
    "prom/alertmanager": ("alertmanager", _nothing),
    "quay.io/prometheus/node-exporter": ("node-exporter", _nothing),
    "oliver006/redis_exporter": ("redis-exporter", _nothing),
    "quay.io/prometheuscommunity/postgres-exporter": (
        "postgres-exporter",
        _go_program("github.com/prometheus-community/postgres_exporter", "./cmd/postgres_exporter"),
    ),
    "registry.k8s.io/kube-state-metrics/kube-state-metrics": (
        "kube-state-metrics",
        _go_program("k8s.io/kube-state-metrics/v2", "."),
    ),
}
"""Official image -> the folder of its Dockerfile, and what the build needs beside that folder."""


def _pod(each: Object) -> Object:
    """The pod of a workload; of any other object, an empty one."""
    found: Object = each.get("spec", {}).get("jobTemplate", each).get("spec", {}).get("template", {}).get("spec", {})
    return found


def _can_be_built(container: Object) -> bool:
    name = container["image"].partition(":")[0]
    return name in _OURS or name in STAND_INS


def images(objects: Iterable[Object]) -> set[str]:
    """The images that built objects name."""
    pods = [_pod(each) for each in objects]
    return {each["image"] for pod in pods for each in [*pod.get("initContainers", []), *pod.get("containers", [])]}


def leave_out(objects: list[Object]) -> tuple[list[Object], list[str]]:
    """Return the objects without the containers that nothing can be built for, and the images of those.

    A workload without any container left is left out as a whole.
    """
    kept, left_out = [], set[str]()
    for each in objects:
        pod = _pod(each)
        left_out |= {container["image"] for container in pod.get("containers", []) if not _can_be_built(container)}
        if "containers" in pod:
            pod["containers"] = [container for container in pod["containers"] if _can_be_built(container)]
            if not pod["containers"]:
                continue
        kept.append(each)
    return kept, sorted(left_out)


def build(node: Node, images: Iterable[str]) -> None:
    """Build and load images, each given as name:tag."""
    for image in sorted(images):
        name, _, tag = image.partition(":")
        if name in _OURS:
            file = ROOT / _OURS[name]
            node.build(image, ROOT, file=file, base=_base(file), volumes={_fetched_jars(): "/build/jars"})
            continue
        with _context(name, tag) as context:
            node.build(image, context)


def _fetched_jars() -> Path:
    """The folder that services.local.jars fetches into: the build finds its jars there, and fetches none itself."""
    jars.fetch(jars.BUNDLES)
    return LocalSettings().cache


def _base(dockerfile: Path) -> str:
    """The default of the argument BASE."""
    found = re.search(r"^ARG BASE=(\S+)", dockerfile.read_text(), re.MULTILINE)
    assert found, f"{dockerfile} has no argument BASE"
    return found[1]


@contextmanager
def _context(name: str, tag: str) -> Iterator[Path]:
    folder, prepare = STAND_INS[name]
    with tempfile.TemporaryDirectory() as temporary:
        context = Path(temporary) / folder
        shutil.copytree(IMAGES / folder, context)
        prepare(context, tag)
        yield context
