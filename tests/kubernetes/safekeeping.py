"""What keeps data from being lost, and secrets from being shown. Rules as in rules.py."""

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from tests.kubernetes import environment
from tests.kubernetes.objects import NAMESPACE, Object, by_name, full_name, of_kind, workloads
from tests.kubernetes.rules import Rule

_RESTORED = "logpipe"
"""The database that a restore replaces. It has no session meanwhile."""

_HOLDS = {
    "backup-postgres": ("postgres", 1),
    "backup-postgres-files": ("postgres", 1),
    "clickhouse-backups": ("clickhouse", 2),
    "backup-lake": ("datanode", 2),
    "backup-redis": ("redis", 2),
}
"""The room that a claim of backups has at least: (store, how many times the volume of one of its pods). Copies of
PostgreSQL are compressed, and those of ClickHouse and the lake are as large as what they copy."""

_UNITS = {"Gi": 1, "Ti": 1024}
_SENSITIVE = "hadoop.security.sensitive-config-keys"


def exporters(objects: list[Object]) -> Iterator[str]:
    """An exporter keeps its session, and a restore refuses a database that has one."""
    for workload in workloads(objects):
        for container in workload.containers:
            known = environment.variables(objects, workload, container)
            if uri := known.get("DATA_SOURCE_URI"):
                database = uri.value.partition("/")[2].partition("?")[0]
                if database == _RESTORED:
                    yield f"{workload}: container {container['name']} keeps a session in database {database}"


def room_for_backups(objects: list[Object]) -> Iterator[str]:
    claims = by_name(objects, "PersistentVolumeClaim", NAMESPACE)
    volumes = {
        workload.name: template["spec"]["resources"]["requests"]["storage"]
        for workload in workloads(objects)
        for template in workload.object["spec"].get("volumeClaimTemplates", [])
    }
    for name, (store, times) in _HOLDS.items():
        if name in claims and store in volumes:
            has = _gibibytes(claims[name]["spec"]["resources"]["requests"]["storage"])
            if has < times * _gibibytes(volumes[store]):
                yield f"claim {name} has {has} GiB, less than {times} times the volume of {store}"


def _gibibytes(text: str) -> int:
    return int(text[:-2]) * _UNITS[text[-2:]]


def hidden_keys(objects: list[Object]) -> Iterator[str]:
    """Hadoop's page /conf, which has no login, prints variables of the container, except of keys in this list."""
    for source in of_kind(objects, "ConfigMap"):
        properties = dict(_properties(source))
        hidden = properties.get(_SENSITIVE, "").split()
        for name, value in properties.items():
            if "${env." in value and "SECRET" in value and not any(re.search(each, name) for each in hidden):
                yield f"{full_name(source)}: {name} has a secret, and {_SENSITIVE} does not hide it"


def _properties(source: Object) -> Iterator[tuple[str, str]]:
    for name, text in environment.contents(source).items():
        if name.endswith("-site.xml"):
            for each in ElementTree.fromstring(text).iter("property"):
                yield each.findtext("name", ""), each.findtext("value", "")


RULES: list[Rule] = [exporters, room_for_backups, hidden_keys]
