"""PostgreSQL accepts the sessions that all pods may open at once, with every autoscaler at its maximum."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from services.query_api.main import QuerySettings, application
from tests.kubernetes.builds import OVERLAYS, ROOT, Builds
from tests.kubernetes.connections import ANNOTATION, accepted, needed, unannotated
from tests.kubernetes.objects import Object, of_kind

WATCHING = 1  # the short session by which a process looks whether PostgreSQL shuts down


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Object]]:
    return Builds(tmp_path_factory.mktemp("kustomize")).build


@pytest.mark.parametrize("name", OVERLAYS)
def test_all_pods_together_open_fewer_sessions_than_postgresql_accepts(
    built: Callable[[str], list[Object]], name: str
) -> None:
    objects = built(name)
    assert list(unannotated(objects)) == []
    assert sum(needed(objects).values()) <= accepted(objects), needed(objects)


def test_an_autoscaler_that_may_add_too_many_pods_is_noticed(built: Callable[[str], list[Object]]) -> None:
    objects = copy.deepcopy(built("k3s"))
    for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
        scaler["spec"]["maxReplicas"] += 10
    assert sum(needed(objects).values()) > accepted(objects)


def test_a_workload_that_does_not_say_how_many_sessions_it_opens_is_noticed(
    built: Callable[[str], list[Object]],
) -> None:
    objects = copy.deepcopy(built("k3s"))
    for each in of_kind(objects, "Deployment"):
        (each["spec"]["template"]["metadata"].get("annotations") or {}).pop(ANNOTATION, None)
    assert "Deployment maintain" in set(unannotated(objects))


async def test_the_query_api_opens_as_many_sessions_as_its_manifest_says(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Pool:
        """Keeps its size, and has no connection to lend."""

        check_connection = None

        def __init__(self, *_: Any, max_size: int, **__: Any) -> None:
            sizes.append(max_size)

        def connection(self) -> Any:
            raise psycopg.OperationalError("unreachable")

        def close(self) -> None:
            pass

    monkeypatch.setattr("services.postgres.pool.ConnectionPool", Pool)
    app = application(QuerySettings())
    async with app.router.lifespan_context(app):
        pass
    assert sum(sizes) + WATCHING == _annotated("query-api")


def _annotated(name: str) -> int:
    file = Path(ROOT / "kubernetes" / "base" / f"{name}.yaml")
    (found,) = of_kind(list(yaml.safe_load_all(file.read_text())), "Deployment")
    return int(found["spec"]["template"]["metadata"]["annotations"][ANNOTATION])


def test_one_node_has_room_for_the_component_backup(built: Callable[[str], list[Object]]) -> None:
    """It is not in the overlay, whose file says how to add it."""
    objects = built("k3s")
    backups = needed(built("base with backup")).items() - needed(built("base with hdfs")).items()
    assert backups
    assert sum(needed(objects).values()) + sum(most for _, most in backups) <= accepted(objects)
