"""The DAGs, by a real Airflow: they import, have the shape they should, and really run their commands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Calls = Callable[[], list[list[str]]]

HERE = Path(__file__).parent
DAGS = HERE.parent / "dags"
STUB = """#!{python}
import json, os, sys
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit("refused by the stub" if sys.argv[1] == os.environ.get("REFUSED") else 0)
"""
CLIENT = {
    "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "none", "user": {}}],
    "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
    "current-context": "none",
}
"""Making the pod of a task opens a client of Kubernetes, which calls nothing."""


@pytest.fixture(scope="session", autouse=True)
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a database of its own, and a `logpipe` that records how it was called."""
    home = tmp_path_factory.mktemp("airflow")
    stub = home / "bin" / "logpipe"
    stub.parent.mkdir()
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    (home / "kubeconfig").write_text(json.dumps(CLIENT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
        patch.setenv("RECORD", str(home / "record"))
        patch.setenv("KUBECONFIG", str(home / "kubeconfig"))
        patch.setenv("AIRFLOW_HOME", str(home))
        patch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(DAGS))
        patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        patch.syspath_prepend(DAGS)
        subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True)
        yield home


@pytest.fixture
def calls(airflow: Path) -> Calls:
    record = airflow / "record"
    record.write_text("")
    return lambda: [json.loads(line) for line in record.read_text().splitlines()]


def dags() -> dict[str, Any]:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(DAGS)
    assert bag.import_errors == {}
    return dict(bag.dags)


def chain(dag: Any) -> list[str]:
    tasks = dag.topological_sort()
    assert all(len(task.downstream_list) <= 1 for task in tasks)
    return [task.task_id for task in tasks]


def test_each_file_has_the_dag_it_should() -> None:
    found = {name: (dag.schedule, dag.catchup, chain(dag)) for name, dag in dags().items()}
    assert found == {
        "daily_pipeline": ("0 2 * * *", False, ["daily_report", "service_analysis"]),
        "compaction": ("0 * * * *", False, ["maintain"]),
        "manual_pipeline": (None, False, ["maintain", "daily_report", "service_analysis"]),
    }


def test_every_command_is_one_of_logpipe() -> None:
    text = (HERE.parents[2] / "services" / "cli.py").read_text()
    commands = {task.task_id.replace("_", "-") for dag in dags().values() for task in dag.tasks}
    assert [command for command in commands if f'"{command}": "' not in text] == []


def test_the_nightly_run_reports_the_day_before(calls: Calls) -> None:
    import pendulum

    run = dags()["daily_pipeline"].test(logical_date=pendulum.datetime(2026, 3, 1, 2, tz="UTC"))
    assert run.state == "success"
    assert calls() == [["daily-report", "--day", "2026-02-28"], ["service-analysis", "--day", "2026-02-28"]]


def test_what_fails_stops_the_rest(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    import pendulum

    monkeypatch.setenv("REFUSED", "daily-report")
    dag = dags()["daily_pipeline"]
    for task in dag.tasks:
        task.retries = 0
    run = dag.test(logical_date=pendulum.datetime(2026, 3, 2, 2, tz="UTC"))
    assert run.state == "failed"
    assert calls() == [["daily-report", "--day", "2026-03-01"]]


def test_compaction_runs_once(calls: Calls) -> None:
    assert dags()["compaction"].test().state == "success"
    assert calls() == [["maintain", "--once"]]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["daily-report"], [["daily-report", "--day", "2026-01-31"]]),
        (
            ["service-analysis", "maintain"],
            [["maintain", "--dataset", "events", "--once"], ["service-analysis", "--day", "2026-01-31"]],
        ),
    ],
)
def test_by_hand_only_the_chosen_steps_run(calls: Calls, steps: list[str], expected: list[list[str]]) -> None:
    conf = {"day": "2026-01-31", "dataset": "events", "steps": steps}
    assert dags()["manual_pipeline"].test(run_conf=conf).state == "success"
    assert calls() == expected


@pytest.mark.parametrize(
    "conf", [{"day": "2026-01-31'; touch /tmp/x; '"}, {"dataset": "$(id)"}, {"steps": []}, {"steps": ["rm"]}]
)
def test_bad_parameters_are_refused_before_anything_runs(calls: Calls, conf: dict[str, Any]) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        dags()["manual_pipeline"].test(run_conf=conf)
    assert calls() == []


def test_in_a_cluster_each_command_is_a_pod_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from command import IMAGE, POD

    monkeypatch.setenv(IMAGE, "logpipe:1")
    monkeypatch.setenv(POD, str(HERE.parents[1] / "components" / "airflow" / "task-pod.yaml"))
    task = dags()["manual_pipeline"].get_task("maintain")
    assert type(task).__name__ == "KubernetesPodOperator"
    assert (task.image, task.cmds) == ("logpipe:1", ["logpipe"])
    assert task.arguments == ["maintain", "--dataset", "{{ params.dataset }}", "--once"]
    assert "arguments" in task.template_fields
    pod = task.build_pod_request_obj()
    (container,) = pod.spec.containers
    assert (container.image, container.command, container.args) == ("logpipe:1", ["logpipe"], task.arguments)
    assert pod.metadata.namespace == "log-pipeline"
    assert pod.spec.security_context.run_as_non_root is True
    assert "LOGPIPE_POSTGRES_URL" in {variable.name for variable in container.env}
