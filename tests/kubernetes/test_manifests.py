"""Every overlay, each component alone with the base, and all components together: they build, their objects have the
form that each supported version of Kubernetes wants, and keep the rules. No cluster is needed.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
from kubernetes_validate import utils

from tests.kubernetes import builds, flows, ours, references, rules, safekeeping
from tests.kubernetes.builds import ALL, NAMES, OVERLAYS, Builds
from tests.kubernetes.objects import Object, full_name, workloads

VERSIONS = ["1.33", "1.34", "1.35", "1.36"]
"""The supported versions of Kubernetes (kubernetes/README.md): those that get patches, and one before them."""

WHOLE = [*OVERLAYS, ALL]
_CUSTOM = "monitoring.coreos.com/"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Object]]:
    builds.command()
    return Builds(tmp_path_factory.mktemp("kustomize")).build


@pytest.fixture
def _schemas_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads several megabytes again for each object."""
    monkeypatch.setattr(utils, "schema_contents", _schema)


_schema: Callable[[str, str], Any] = cache(utils.schema_contents)


@pytest.mark.parametrize("name", NAMES)
def test_it_builds(built: Callable[[str], list[Object]], name: str) -> None:
    assert workloads(built(name))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.usefixtures("_schemas_are_read_once")
def test_objects_have_the_form_of_this_version(built: Callable[[str], list[Object]], version: str) -> None:
    distinct = {repr(each): each for name in NAMES for each in built(name)}
    for each in distinct.values():
        if each["apiVersion"].startswith(_CUSTOM):
            continue
        try:
            used = kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise AssertionError(f"{full_name(each)}: {'.'.join(map(str, error.path))}: {error.message}") from error
        assert used == version


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: str(rule.__name__))
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_rule(built: Callable[[str], list[Object]], name: str, rule: rules.Rule) -> None:
    assert list(rule(built(name))) == []


@pytest.mark.parametrize(
    "rule",
    [*references.RULES, *flows.RULES, *ours.RULES, *safekeeping.RULES],
    ids=lambda rule: f"{rule.__module__[17:]}-{rule.__name__}",
)
@pytest.mark.parametrize("name", WHOLE)
def test_what_it_names_exists(built: Callable[[str], list[Object]], name: str, rule: rules.Rule) -> None:
    assert list(rule(built(name))) == []


def test_every_dag_is_mounted_as_a_file(built: Callable[[str], list[Object]]) -> None:
    """Airflow takes the links of a ConfigMap that is mounted as a folder for a recursive loop, and ends."""
    objects = {full_name(each): each for each in built("k3s")}
    (dags,) = [each for name, each in objects.items() if name.startswith("ConfigMap airflow-dags")]
    (airflow,) = [each for name, each in objects.items() if name == "Deployment airflow"]
    for container in airflow["spec"]["template"]["spec"]["containers"]:
        mounts = {each["mountPath"] for each in container["volumeMounts"] if each["name"] == "dags"}
        assert mounts in (set(), {f"/etc/airflow/dags/{file}" for file in dags["data"]})


@pytest.mark.parametrize("rule", references.RULES_OF_ALL, ids=lambda rule: str(rule.__name__))
def test_all_components_use_what_there_is(built: Callable[[str], list[Object]], rule: rules.Rule) -> None:
    assert list(rule(built(ALL))) == []
