"""The environment of a container as the kubelet makes it, with the names that it cannot make and why."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.kubernetes.objects import Object, Workload, by_name

_EXPANSION = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass(frozen=True, slots=True)
class Variable:
    """`own`: set for this container. Otherwise it comes with a whole ConfigMap or Secret, which others share."""

    value: str
    own: bool


def contents(source: Object) -> dict[str, str]:
    """The keys of a ConfigMap or a Secret, decoded."""
    encoded = source.get("data") or {} if source["kind"] == "Secret" else source.get("binaryData") or {}
    plain = source.get("stringData") if source["kind"] == "Secret" else source.get("data")
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in encoded.items()} | (plain or {})


def references(container: Object) -> Iterator[tuple[str, str, str | None, bool]]:
    """(kind, name, key or None for all keys, whether it may be absent) of every ConfigMap and Secret in variables."""
    for source in container.get("envFrom", []):
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in source:
                yield kind, source[field]["name"], None, source[field].get("optional", False)
    for variable in container.get("env", []):
        for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            if field in variable.get("valueFrom", {}):
                found = variable["valueFrom"][field]
                yield kind, found["name"], found["key"], found.get("optional", False)


def variables(objects: list[Object], workload: Workload, container: Object) -> dict[str, Variable]:
    """All variables by name. One that comes from the pod's own fields has a value that stands for any."""
    known: dict[str, Variable] = {}
    for source in container.get("envFrom", []):
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in source:
                found = by_name(objects, kind, workload.namespace).get(source[field]["name"])
                known |= {key: Variable(value, own=False) for key, value in contents(found).items()} if found else {}
    for variable in container.get("env", []):
        known[variable["name"]] = Variable(_value(objects, workload, variable, known), own=True)
    return known


def _value(objects: list[Object], workload: Workload, variable: Object, before: dict[str, Variable]) -> str:
    source = variable.get("valueFrom", {})
    for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
        if field in source:
            found = by_name(objects, kind, workload.namespace).get(source[field]["name"])
            return contents(found).get(source[field]["key"], "") if found else ""
    if source:
        return "0"
    return expanded(variable.get("value", ""), before)


def expanded(text: str, known: dict[str, Variable]) -> str:
    """The kubelet replaces only variables that are defined before, and leaves the text of the others as it is."""
    return _EXPANSION.sub(lambda found: known[found[1]].value if found[1] in known else found[0], text)


def unexpanded(text: str) -> list[str]:
    return _EXPANSION.findall(text)
