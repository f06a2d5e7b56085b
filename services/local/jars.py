"""Downloads the jars of Kafka, HDFS and Spark's packages once into a cache folder, by the Ivy of pyspark.

Only Python and Java are needed. A bundle is complete or absent: it is downloaded into a folder of another name, which
is renamed at the end.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from xml.sax.saxutils import quoteattr

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.core.errors import NeedsOperator
from services.local.java import java
from services.local.settings import LocalSettings

_TRIES = 3
_DOWNLOADING = re.compile(r"downloading .*/([^/ ]+\.jar)")


@dataclass(frozen=True, slots=True)
class Bundle:
    """`artifacts` are group:name:version[:classifier]. The bundle also has everything that they depend on."""

    name: str
    artifacts: tuple[str, ...]
    beside_pyspark: bool = False  # runs within Spark: without the jars that pyspark has already

    @property
    def folder(self) -> Path:
        """The name contains a digest of the artifacts, so that jars of two versions are never mixed."""
        digest = hashlib.sha256(" ".join(self.artifacts).encode()).hexdigest()[:12]
        return LocalSettings().cache / f"{self.name}-{digest}"


KAFKA = Bundle(
    "kafka",
    (
        "org.apache.kafka:kafka_2.13:4.3.1",
        "org.apache.kafka:kafka-tools:4.3.1",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
    ),
)
HDFS = Bundle(
    "hdfs",
    (
        "org.apache.hadoop:hadoop-common:3.5.0",
        "org.apache.hadoop:hadoop-hdfs:3.5.0",
        "org.apache.hadoop:hadoop-hdfs:3.5.0:tests",  # the one artifact that has webapps/
        "org.apache.hadoop:hadoop-hdfs-client:3.5.0",  # needed, though hadoop-hdfs calls it "provided"
    ),
)
SPARK = Bundle(
    "spark",
    ("org.apache.spark:spark-sql-kafka-0-10_2.13:4.0.0", "io.delta:delta-spark_4.0_2.13:4.4.0"),
    beside_pyspark=True,
)
JMX_AGENT = Bundle("jmx-agent", ("io.prometheus.jmx:jmx_prometheus_javaagent:1.0.1",))
BUNDLES = (KAFKA, HDFS, SPARK, JMX_AGENT)


def kafka_classpath() -> str:
    return f"{resolve(KAFKA)}/*"


def hdfs_classpath() -> str:
    """Return the classpath. It has the folder itself, too, because the servers find `webapps` only outside of a jar."""
    folder = resolve(HDFS)
    return f"{folder}/*:{folder}"


def spark_jars() -> list[str]:
    """Return the jars that a Spark session needs beside those of pyspark, for its setting `spark.jars`."""
    return sorted(str(jar) for jar in resolve(SPARK).glob("*.jar"))


def resolve(bundle: Bundle) -> Path:
    """Return the bundle's folder. Downloads the bundle first if it is missing. Raises NeedsOperator."""
    if not bundle.folder.is_dir():
        fetch([bundle])
    return bundle.folder


def fetch(bundles: Iterable[Bundle]) -> None:
    """Download the missing bundles, all at the same time. Raises NeedsOperator."""
    missing = [bundle for bundle in bundles if not bundle.folder.is_dir()]
    columns = (SpinnerColumn(finished_text="•"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, ThreadPoolExecutor(len(BUNDLES)) as pool:
        for _ in pool.map(lambda bundle: _fetch(bundle, progress), missing):
            pass


def _fetch(bundle: Bundle, progress: Progress) -> None:
    task = progress.add_task(f"jars of {bundle.name}: resolving", total=1)
    bundle.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(bundle.folder.with_suffix(".lock")):  # another process may be downloading it
        if not bundle.folder.is_dir():
            _download(bundle, lambda said: progress.update(task, description=f"jars of {bundle.name}: {said}"))
    count = len(list(bundle.folder.glob("*.jar")))
    progress.update(task, description=f"jars of {bundle.name}: {count} in {bundle.folder}", completed=1)


def _download(bundle: Bundle, tell: Callable[[str], None]) -> None:
    work = bundle.folder.with_suffix(".part")  # kept after a failure, so that the next try continues
    jars = work / "jars"
    shutil.rmtree(jars, ignore_errors=True)
    jars.mkdir(parents=True)
    (work / "ivy.xml").write_text(_ivy_file(bundle))
    for _ in range(_TRIES):
        if not (problem := _run_ivy(work, jars, tell)):
            break
    else:
        raise NeedsOperator(
            f"could not download the jars of {bundle.name} into {bundle.folder}. Check the network and the free"
            f" disk space, then run the command again: it continues where it stopped.\n{problem}"
        )
    if bundle.beside_pyspark:
        shipped = {_artifact(jar) for jar in (_pyspark_home() / "jars").glob("*.jar")}
        for jar in jars.glob("*.jar"):
            if _artifact(jar) in shipped:
                jar.unlink()
    for jar in jars.glob("*-tests.jar"):
        with zipfile.ZipFile(jar) as archive:
            archive.extractall(jars, [name for name in archive.namelist() if name.startswith("webapps/")])
        jar.unlink()
    jars.rename(bundle.folder)
    shutil.rmtree(work)


def _run_ivy(work: Path, jars: Path, tell: Callable[[str], None]) -> str:
    """Return '' if all went well, else the end of Ivy's output."""
    ivy = next((_pyspark_home() / "jars").glob("ivy-*.jar"))
    command = [java(), "-jar", str(ivy), "-ivy", str(work / "ivy.xml"), "-cache", str(work / "ivy")]
    command += ["-confs", "default", "-retrieve", f"{jars}/[artifact]-[revision](-[classifier]).[ext]"]
    output: deque[str] = deque(maxlen=20)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line.rstrip())
            if jar := _DOWNLOADING.search(line):
                tell(jar[1])
    return "\n".join(output) if process.returncode else ""


def _ivy_file(bundle: Bundle) -> str:
    dependencies: dict[tuple[str, str, str], list[str]] = {}
    for artifact in bundle.artifacts:
        group, name, version, *classifier = artifact.split(":")
        dependencies.setdefault((group, name, version), []).append(classifier[0] if classifier else "")
    lines = []
    for (group, name, version), classifiers in dependencies.items():
        lines.append(f'<dependency org="{group}" name="{name}" rev="{version}" force="true" conf="default->default">')
        if any(classifiers):
            lines += [
                f'<artifact name="{name}" type="jar" ext="jar"'
                + (f" m:classifier={quoteattr(classifier)}/>" if classifier else "/>")
                for classifier in classifiers
            ]
        lines.append("</dependency>")
    return (
        '<ivy-module version="2.0" xmlns:m="http://ant.apache.org/ivy/maven">'
        f'<info organisation="logpipe" module="{bundle.name}"/><configurations><conf name="default"/></configurations>'
        f"<dependencies>{''.join(lines)}</dependencies></ivy-module>"
    )


def _artifact(jar: Path) -> str:
    """Return the name of a jar without its version."""
    words = jar.stem.split("-")
    return "-".join(word for word in words if not word[:1].isdigit())


@cache
def _pyspark_home() -> Path:
    spec = find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise NeedsOperator("pyspark is not installed: run `make install`")
    return Path(spec.origin).parent


def _named(names: Iterable[str]) -> list[Bundle]:
    """The bundles of these names, all without any. Raises NeedsOperator for an unknown name."""
    known = {bundle.name: bundle for bundle in BUNDLES}
    if unknown := set(names) - set(known):
        raise NeedsOperator(f"no jars are called {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    return [known[name] for name in names] or list(BUNDLES)


if __name__ == "__main__":
    try:
        fetch(_named(sys.argv[1:]))
    except NeedsOperator as error:
        raise SystemExit(str(error)) from error
