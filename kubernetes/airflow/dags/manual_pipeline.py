"""By hand, with parameters: maintain a dataset, and make the reports of any day, also again."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Context, Param, TriggerRule
from airflow.sdk.exceptions import AirflowSkipException
from command import DEFAULTS, logpipe

STEPS = ["maintain", "daily-report", "service-analysis"]


def chosen(step: str) -> dict[str, Any]:
    """The options of a task that is skipped unless its step was chosen; what comes after it runs all the same."""

    def check(context: Context) -> None:
        if step not in context["params"]["steps"]:
            raise AirflowSkipException(f"step {step} was not chosen")

    hook: Callable[[Context], None] = check
    return {"pre_execute": hook, "trigger_rule": TriggerRule.NONE_FAILED}


with DAG(
    "manual_pipeline",
    description="Chosen steps for a chosen day",
    schedule=None,
    max_active_runs=1,
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["logpipe"],
    params={
        "day": Param(
            f"{datetime.now(UTC) - timedelta(days=1):%F}",
            type="string",
            format="date",
            description="Of event time, UTC.",
        ),
        "dataset": Param("logs", type="string", enum=["logs", "events", "footprints"], description="What to maintain."),
        "steps": Param(
            STEPS[1:],
            type="array",
            items={"enum": STEPS},
            examples=STEPS,
            minItems=1,
            description="In this order.",
        ),
    },
) as dag:
    (
        logpipe("maintain", "--dataset", "{{ params.dataset }}", "--once", **chosen("maintain"))
        >> logpipe("daily-report", "--day", "{{ params.day }}", **chosen("daily-report"))
        >> logpipe("service-analysis", "--day", "{{ params.day }}", **chosen("service-analysis"))
    )
