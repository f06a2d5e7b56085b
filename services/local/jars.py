"""The jars of Kafka, HDFS and Spark's packages: resolved once into a cache folder, by the Ivy that pyspark brings.

Only Python and Java are needed: no Maven, no server tarballs. A bundle is complete or absent: it is downloaded
beside its place and renamed into it, so an interrupted download is never mistaken for a finished one.
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
    """Artifacts as group:name:version[:classifier]; what they depend on comes with them."""

    name: str
    artifacts: tuple[str, ...]
    beside_pyspark: bool = False  # runs within Spark: leave out what pyspark already ships

    @property
    def folder(self) -> Path:
        """One per exact list of artifacts: a new version never mixes with an old one's jars."""
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
    """The servers look for the folder `webapps` on the classpath, and find it only outside of a jar."""
    folder = resolve(HDFS)
    return f"{folder}/*:{folder}"


def spark_jars() -> list[str]:
    """What a Spark session needs beside pyspark's own jars; for `spark.jars`, so that it resolves nothing itself."""
    return sorted(str(jar) for jar in resolve(SPARK).glob("*.jar"))


def resolve(bundle: Bundle) -> Path:
    """The bundle's folder, downloaded first if need be; raises NeedsOperator."""
    if not bundle.folder.is_dir():
        fetch([bundle])
    return bundle.folder


def fetch(bundles: Iterable[Bundle]) -> None:
    """Download those that are missing, side by side; raises NeedsOperator."""
    missing = [bundle for bundle in bundles if not bundle.folder.is_dir()]
    columns = (SpinnerColumn(finished_text="•"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, ThreadPoolExecutor(len(BUNDLES)) as pool:
        for _ in pool.map(lambda bundle: _fetch(bundle, progress), missing):
            pass


def _fetch(bundle: Bundle, progress: Progress) -> None:
    task = progress.add_task(f"jars of {bundle.name}: resolving", total=1)
    bundle.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(bundle.folder.with_suffix(".lock")):  # another process may be at it
        if not bundle.folder.is_dir():
            _download(bundle, lambda said: progress.update(task, description=f"jars of {bundle.name}: {said}"))
    count = len(list(bundle.folder.glob("*.jar")))
    progress.update(task, description=f"jars of {bundle.name}: {count} in {bundle.folder}", completed=1)


def _download(bundle: Bundle, tell: Callable[[str], None]) -> None:
    work = bundle.folder.with_suffix(".part")  # kept after a failure: the next try goes on from there
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
            f" disk space, then run the command again: it goes on where it stopped.\n{problem}"
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
    """Empty when all went well, else the end of what Ivy said."""
    ivy = next((_pyspark_home() / "jars").glob("ivy-*.jar"))
    command = [java(), "-jar", str(ivy), "-ivy", str(work / "ivy.xml"), "-cache", str(work / "ivy")]
    command += ["-confs", "default", "-retrieve", f"{jars}/[artifact]-[revision](-[classifier]).[ext]"]
    said: deque[str] = deque(maxlen=20)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.rstrip())
            if jar := _DOWNLOADING.search(line):
                tell(jar[1])
    return "\n".join(said) if process.returncode else ""


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
    """The name of a jar without its version."""
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
