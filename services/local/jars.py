"""The jars of Kafka, HDFS and Spark's packages: resolved once into a cache folder, by the Ivy that pyspark brings.

Only Python and Java are needed: no Maven, no server tarballs. A bundle is complete or absent: it is downloaded
beside its place and renamed into it, so an interrupted download is never mistaken for a finished one.
"""

import hashlib
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from xml.sax.saxutils import quoteattr

from filelock import FileLock
from rich.console import Console

from services.core.errors import NeedsOperator
from services.local.java import java
from services.local.settings import LocalSettings

_TRIES = 3
_console = Console(stderr=True)


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
BUNDLES = (KAFKA, HDFS, SPARK)


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
    if bundle.folder.is_dir():
        return bundle.folder
    bundle.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(bundle.folder.with_suffix(".lock")):
        if not bundle.folder.is_dir():
            _download(bundle)
    return bundle.folder


def _download(bundle: Bundle) -> None:
    work = bundle.folder.with_suffix(".part")  # kept after a failure: the next try goes on from there
    jars = work / "jars"
    shutil.rmtree(jars, ignore_errors=True)
    jars.mkdir(parents=True)
    (work / "ivy.xml").write_text(_ivy_file(bundle))
    for last in (False,) * (_TRIES - 1) + (True,):
        output = _run_ivy(bundle, work, jars)
        if output is None:
            break
        if last:
            raise NeedsOperator(
                f"could not download the jars of {bundle.name} ({bundle.folder}). Check the network"
                f" (or the free disk space), then run the command again: it goes on where it stopped.\n{output}"
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


def _run_ivy(bundle: Bundle, work: Path, jars: Path) -> str | None:
    """None when all went well, else the end of what Ivy said."""
    ivy = next((_pyspark_home() / "jars").glob("ivy-*.jar"))
    command = [java(), "-jar", str(ivy), "-ivy", str(work / "ivy.xml"), "-cache", str(work / "ivy")]
    command += ["-confs", "default", "-retrieve", f"{jars}/[artifact]-[revision](-[classifier]).[ext]"]
    said: list[str] = []
    with (
        _console.status(f"jars of {bundle.name}: resolving") as status,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        count = 0
        for line in process.stdout:
            said = [*said[-20:], line.rstrip()]
            if "downloading" in line and ".jar" in line:
                count += 1
                status.update(f"jars of {bundle.name}: {count}, {line.split('/')[-1].split(' ')[0].strip()}")
    if process.returncode == 0 and any(jars.glob("*.jar")):
        _console.print(f"jars of {bundle.name}: {len(list(jars.glob('*.jar')))} in {bundle.folder}")
        return None
    return "\n".join(said)


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
