"""A `logpipe` command as a task: a pod when LOGPIPE_AIRFLOW_IMAGE names its image, else a local process.

LOGPIPE_AIRFLOW_POD is the file that the pod is made from: settings, secrets, volumes and limits. Its container is
called `base`.
"""

import os
import shlex
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import BaseOperator

IMAGE = "LOGPIPE_AIRFLOW_IMAGE"
POD = "LOGPIPE_AIRFLOW_POD"

DEFAULTS: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(minutes=5),
    "execution_timeout": timedelta(hours=2),
}
"""Every command may be run again: what it did before, it replaces."""


def logpipe(command: str, *arguments: str, **options: Any) -> BaseOperator:
    """`arguments` may be templates; parameters in them must be validated by their schema. `options`: the operator's."""
    task_id = command.replace("-", "_")
    image = os.environ.get(IMAGE)
    if not image:
        bash = shlex.join(["exec", "logpipe", command, *arguments])
        return BashOperator(task_id=task_id, bash_command=bash, append_env=True, **options)

    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator  # slow to import

    return KubernetesPodOperator(
        task_id=task_id,
        name=f"logpipe-{command}",
        image=image,
        cmds=["logpipe"],
        arguments=[command, *arguments],
        pod_template_file=os.environ[POD],
        **options,
    )
