"""Builds what the manifests name: our own images from their Dockerfiles, and a stand-in for each official image, since
the node of the tests pulls nothing. A stand-in has the same name, ports, user and commands as the official image.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from node import Node

from services.local import jars
from services.local.settings import LocalSettings

ROOT = Path(__file__).parents[2]
IMAGES = Path(__file__).parent / "images"

_OURS = {"log-pipeline/services": "services/Dockerfile", "log-pipeline/spark-jobs": "spark_jobs/Dockerfile"}


def _lock(context: Path) -> None:
    shutil.copy(ROOT / "requirements" / "lock.txt", context / "lock.txt")


def _jars(bundle: jars.Bundle) -> Callable[[Path], None]:
    def copy(context: Path) -> None:
        shutil.copytree(jars.resolve(bundle), context / "jars")

    return copy


def _lock_and_services(context: Path) -> None:
    _lock(context)
    shutil.copytree(ROOT / "services", context / "services", ignore=shutil.ignore_patterns("__pycache__"))


def _airflow(context: Path) -> None:
    shutil.copy(ROOT / "kubernetes" / "airflow" / "requirements.txt", context / "requirements.txt")


def _nothing(context: Path) -> None:
    """Debian's packages are all that the image needs."""


STAND_INS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "postgres": ("postgres", _lock),
    "apache/kafka": ("kafka", _jars(jars.KAFKA)),
    "apache/hadoop": ("hadoop", _jars(jars.HDFS)),
    "clickhouse/clickhouse-server": ("clickhouse", _lock_and_services),
    "redis": ("redis", _nothing),
    "apache/airflow": ("airflow", _airflow),
}
"""Official image -> the folder of its Dockerfile, and what the build needs beside that folder."""


def images(objects: Iterable[dict[str, Any]]) -> set[str]:
    """The images that built objects name."""
    found: set[str] = set()
    for each in objects:
        pod = each.get("spec", {}).get("jobTemplate", each).get("spec", {}).get("template", {}).get("spec", {})
        for container in [*pod.get("initContainers", []), *pod.get("containers", [])]:
            found.add(container["image"])
    return found


def build(node: Node, images: Iterable[str]) -> None:
    """Build and load images, each given as name:tag. Images without Dockerfile are refused."""
    for image in sorted(images):
        name = image.partition(":")[0]
        if name in _OURS:
            file = ROOT / _OURS[name]
            node.build(image, ROOT, file=file, base=_base(file), volumes={_fetched_jars(): "/build/jars"})
            continue
        with _context(name) as context:
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
def _context(name: str) -> Iterator[Path]:
    folder, prepare = STAND_INS[name]
    with tempfile.TemporaryDirectory() as temporary:
        context = Path(temporary) / folder
        shutil.copytree(IMAGES / folder, context)
        prepare(context)
        yield context
