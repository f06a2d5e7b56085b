"""A `logpipe` command as a task: a pod of the image LOGPIPE_AIRFLOW_IMAGE when that is set, else a local process."""

import os
import shlex
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import BaseOperator

IMAGE = "LOGPIPE_AIRFLOW_IMAGE"
SETTINGS = "logpipe"  # the config map and the secret of a pod's settings

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
    from kubernetes.client import V1ConfigMapEnvSource, V1EnvFromSource, V1SecretEnvSource

    return KubernetesPodOperator(
        task_id=task_id,
        name=f"logpipe-{command}",
        image=image,
        cmds=["logpipe"],
        arguments=[command, *arguments],
        env_from=[
            V1EnvFromSource(config_map_ref=V1ConfigMapEnvSource(name=SETTINGS)),
            V1EnvFromSource(secret_ref=V1SecretEnvSource(name=SETTINGS)),
        ],
        **options,
    )
