"""HDFS as two programs of the stack: one NameNode and one DataNode."""

import base64
import hmac
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import httpx

from services.core.errors import NeedsOperator
from services.local import jars, jmx, passwords
from services.local.java import java
from services.local.program import Program, made_whole, write_private
from services.local.settings import LocalSettings
from services.runtime.health import Check

_LOG4J = Path(__file__).parent / "conf" / "log4j.properties"
_JVM = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError")
_NAMENODE = "org.apache.hadoop.hdfs.server.namenode.NameNode"
_COOKIE_TYPE, _USER = "ldap", "logpipe"
_DATANODE = "org.apache.hadoop.hdfs.server.datanode.DataNode"


def namenode(settings: LocalSettings) -> Program:
    folder = settings.folder / "namenode"
    data = folder / "data"
    metrics = settings.local_namenode_metrics_port

    def prepare() -> None:
        _write_configuration(settings, folder)
        if not data.exists():
            with made_whole(data) as part:
                _format(folder, part)

    return Program(
        name="namenode",
        command=(*_java(folder, *jmx.agent(settings, "hdfs", metrics)), _NAMENODE),
        folder=folder,
        address=f"hdfs://127.0.0.1:{settings.local_namenode_port}",
        ports={
            "LOGPIPE_LOCAL_NAMENODE_PORT": settings.local_namenode_port,
            "LOGPIPE_LOCAL_NAMENODE_HTTP_PORT": settings.local_namenode_http_port,
            **jmx.ports(settings, "LOGPIPE_LOCAL_NAMENODE_METRICS_PORT", metrics),
        },
        ready=_namenode_ready(settings),
        prepare=prepare,
    )


def datanode(settings: LocalSettings) -> Program:
    folder = settings.folder / "datanode"
    metrics = settings.local_datanode_metrics_port
    return Program(
        name="datanode",
        command=(*_java(folder, *jmx.agent(settings, "hdfs", metrics)), _DATANODE),
        folder=folder,
        address=f"127.0.0.1:{settings.local_datanode_port}",
        ports={
            "LOGPIPE_LOCAL_DATANODE_PORT": settings.local_datanode_port,
            "LOGPIPE_LOCAL_DATANODE_IPC_PORT": settings.local_datanode_ipc_port,
            "LOGPIPE_LOCAL_DATANODE_HTTP_PORT": settings.local_datanode_http_port,
            **jmx.ports(settings, "LOGPIPE_LOCAL_DATANODE_METRICS_PORT", metrics),
        },
        ready=_datanode_ready(settings),
        prepare=lambda: _write_configuration(settings, folder),
    )


def _namenode_ready(settings: LocalSettings) -> Check:
    """The NameNode is ready once it serves RPC, also in safe mode, which the DataNode ends after it has started."""
    return _check(settings, {("NameNodeStatus", "State"): "active"})


def _datanode_ready(settings: LocalSettings) -> Check:
    """The DataNode is ready once the NameNode counts it as live and knows enough of its blocks to leave safe mode."""
    return _check(settings, {("FSNamesystemState", "NumLiveDataNodes"): 1, ("NameNodeInfo", "Safemode"): ""})


def _check(settings: LocalSettings, wanted: Mapping[tuple[str, str], str | int]) -> Check:
    """Return a check that attributes of the NameNode's JMX beans, (bean, attribute), have these values."""
    url = f"http://127.0.0.1:{settings.local_namenode_http_port}/jmx"

    def attribute(bean: str, name: str) -> Any:
        parameters, headers = {"qry": f"Hadoop:service=NameNode,name={bean}"}, {"Cookie": _cookie(settings)}
        reply = httpx.get(url, params=parameters, headers=headers, timeout=2, trust_env=False)
        return reply.raise_for_status().json()["beans"][0][name]

    def check() -> str | None:
        try:
            for (bean, name), value in wanted.items():
                if (found := attribute(bean, name)) != value:
                    return f"{name} is {found!r}, not {value!r}"
        except (httpx.HTTPError, LookupError) as error:
            return f"{url}: {error or type(error).__name__}"
        return None

    return check


def _format(folder: Path, data: Path) -> None:
    here = f"-Ddfs.namenode.name.dir={data.as_uri()}"
    command = (*_java(folder), _NAMENODE, here, "-format", "-nonInteractive")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise NeedsOperator(f"formatting the NameNode's data folder failed:\n{done.stdout}{done.stderr}")


def _java(folder: Path, *options: str) -> tuple[str, ...]:
    classpath = f"{folder / 'conf'}:{jars.hdfs_classpath()}"
    log4j = f"-Dlog4j.configuration=file:{_LOG4J}"
    return (java(), *_JVM, *options, log4j, f"-Dhadoop.log.dir={folder}", "-cp", classpath)


def _write_configuration(settings: LocalSettings, folder: Path) -> None:
    (folder / "conf").mkdir(exist_ok=True)
    for name, properties in (("core-site.xml", _core_site(settings)), ("hdfs-site.xml", _hdfs_site(settings))):
        lines = "".join(
            f"<property><name>{name}</name><value>{escape(value)}</value></property>\n"
            for name, value in properties.items()
        )
        write_private(folder / "conf" / name, f"<configuration>\n{lines}</configuration>\n")


def _core_site(settings: LocalSettings) -> dict[str, str]:
    return {
        "fs.defaultFS": f"hdfs://127.0.0.1:{settings.local_namenode_port}",
        "hadoop.tmp.dir": str(settings.folder / "namenode" / "tmp"),
        **_web_pages_closed(settings),
    }


def _web_pages_closed(settings: LocalSettings) -> dict[str, str]:
    """Return the properties that close the web pages of HDFS to all clients but the stack.

    The pages change data (WebHDFS, `fsck` with `delete`), accept any name of a user, and cannot be turned off. With
    these properties, a page requires a cookie that is signed with the stack's secret; there is no LDAP server that
    would issue another cookie. The DataNode's WebHDFS knows no cookies, and requires a header with a secret name.
    """
    passwords.hdfs(settings.folder)  # creates the file
    return {
        "hadoop.http.filter.initializers": "org.apache.hadoop.security.AuthenticationFilterInitializer",
        "hadoop.http.authentication.type": _COOKIE_TYPE,
        "hadoop.http.authentication.ldap.providerurl": "ldap://127.0.0.1:1",
        "hadoop.http.authentication.ldap.basedn": "nobody",
        "hadoop.http.authentication.signature.secret.file": str(passwords.hdfs_file(settings.folder)),
    }


def _cookie(settings: LocalSettings) -> str:
    """Return a cookie that is valid for a minute, in the form of Hadoop's AuthenticationToken and Signer."""
    token = f"u={_USER}&p={_USER}&t={_COOKIE_TYPE}&e={int((time.time() + 60) * 1000)}"
    signature = hmac.digest(passwords.hdfs(settings.folder).encode(), token.encode(), "sha256")
    return f'hadoop.auth="{token}&s={base64.b64encode(signature).decode()}"'


def _hdfs_site(settings: LocalSettings) -> dict[str, str]:
    return {
        "dfs.replication": "1",
        "dfs.permissions.enabled": "false",
        "dfs.namenode.name.dir": (settings.folder / "namenode" / "data").as_uri(),
        "dfs.namenode.rpc-address": f"127.0.0.1:{settings.local_namenode_port}",
        "dfs.namenode.http-address": f"127.0.0.1:{settings.local_namenode_http_port}",
        "dfs.namenode.safemode.extension": "0",
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        # The only DataNode restarts within seconds: the NameNode notices its end and its return as fast.
        "dfs.heartbeat.interval": "1",
        "dfs.namenode.heartbeat.recheck-interval": "5000",
        "dfs.client.block.write.replace-datanode-on-failure.policy": "NEVER",
        "dfs.datanode.data.dir": (settings.folder / "datanode" / "data").as_uri(),
        "dfs.datanode.hostname": "127.0.0.1",
        "dfs.datanode.address": f"127.0.0.1:{settings.local_datanode_port}",
        "dfs.datanode.ipc.address": f"127.0.0.1:{settings.local_datanode_ipc_port}",
        "dfs.datanode.http.address": f"127.0.0.1:{settings.local_datanode_http_port}",
        # See _web_pages_closed. In core-site.xml, the defaults of HDFS would override these.
        "dfs.webhdfs.rest-csrf.enabled": "true",
        "dfs.webhdfs.rest-csrf.custom-header": f"X-{secrets.token_hex()}",
        "dfs.webhdfs.rest-csrf.browser-useragents-regex": ".*",
        "dfs.webhdfs.rest-csrf.methods-to-ignore": "none",
    }
