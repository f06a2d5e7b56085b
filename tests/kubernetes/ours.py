"""What the manifests give our own processes is what the code knows: commands, settings, ports, images. Rules as in
rules.py.
"""

import os
import re
from collections.abc import Iterator
from unittest.mock import patch

from pydantic import ValidationError

from services.cli import COMMANDS
from services.core.errors import NeedsOperator
from services.runtime.auth import Guard
from services.runtime.settings import ListenSettings, Settings
from tests.kubernetes import environment, process_settings
from tests.kubernetes.builds import ROOT
from tests.kubernetes.flows import flows
from tests.kubernetes.objects import Object, Workload, is_ours, our_command, workloads
from tests.kubernetes.references import container_ports
from tests.kubernetes.rules import Rule

DOCKERFILES = {"log-pipeline/services": "services/Dockerfile", "log-pipeline/spark-jobs": "spark_jobs/Dockerfile"}


def _ours(objects: list[Object]) -> Iterator[tuple[Workload, Object]]:
    return ((workload, each) for workload in workloads(objects) for each in workload.containers if is_ours(each))


def images(objects: list[Object]) -> Iterator[str]:
    for workload, container in _ours(objects):
        name = container["image"].partition(":")[0]
        if name not in DOCKERFILES:
            yield f"{workload}: nothing builds the image {name}"
        elif not (ROOT / DOCKERFILES[name]).exists():
            yield f"{workload}: {DOCKERFILES[name]} does not exist"


def _processes(objects: list[Object]) -> Iterator[tuple[Workload, Object]]:
    """Our containers that run logpipe, and no other program of the image."""
    return (
        (workload, each)
        for workload, each in _ours(objects)
        if "command" not in each or any(word.endswith("logpipe") for word in each["command"])
    )


def commands(objects: list[Object]) -> Iterator[str]:
    for workload, container in _processes(objects):
        if our_command(container) not in COMMANDS:
            yield f"{workload}: container {container['name']} runs {our_command(container)!r}, no command of logpipe"


def names_of_settings(objects: list[Object]) -> Iterator[str]:
    for workload, container in _processes(objects):
        if our_command(container) not in COMMANDS:
            continue
        own = process_settings.variables(our_command(container))
        for name, variable in environment.variables(objects, workload, container).items():
            if not name.startswith("LOGPIPE_"):
                continue
            if variable.own and name not in own:
                yield f"{workload}: {our_command(container)} has no setting {name}"
            elif name not in process_settings.all_variables():
                yield f"{workload}: no process has a setting {name}"


def values_of_settings(objects: list[Object]) -> Iterator[str]:
    """Each class of settings is made from the variables of the container, as the process does when it starts."""
    for workload, container in _processes(objects):
        if our_command(container) not in COMMANDS:
            continue
        found = environment.variables(objects, workload, container)
        with patch.dict(os.environ, {name: variable.value for name, variable in found.items()}, clear=True):
            for settings in process_settings.classes(our_command(container)):
                yield from (f"{workload}: {offence}" for offence in _offences(settings, workload, container))


def _offences(settings: type[Settings], workload: Workload, container: Object) -> Iterator[str]:
    try:
        made = settings()
    except ValidationError as error:
        yield from (f"{settings.__name__}: {each['loc']}: {each['msg']}" for each in error.errors())
        return
    if isinstance(made, ListenSettings) and container in workload.long_running_containers:
        if made.host != "0.0.0.0":  # probes come to the pod's address
            yield f"listens on {made.host}, where no probe reaches it"
        try:
            Guard(made)
        except NeedsOperator as error:
            yield str(error)
        for field in type(made).model_fields:
            port = getattr(made, field) if field.endswith("_port") else None
            if port is not None and port not in container_ports(workload):
                yield f"listens on port {port} ({field}), which its container does not declare"


def allowed_hosts(objects: list[Object]) -> Iterator[str]:
    """A process answers only requests for a host name that it knows."""
    for flow in sorted(flows(objects), key=str):
        container = flow.target.pod["containers"][0]
        if not flow.host or not is_ours(container) or flow.port not in container_ports(flow.target):
            continue
        known = environment.variables(objects, flow.target, container)
        allowed = known["LOGPIPE_ALLOWED_HOSTS"].value if "LOGPIPE_ALLOWED_HOSTS" in known else ""
        if flow.host not in map(str.strip, allowed.split(",")):
            yield f"{flow.target} refuses requests for the host {flow.host}, by which {flow.client} calls it"


def tokens(objects: list[Object]) -> Iterator[str]:
    """Whoever calls an API of ours that asks for a token has that token."""
    for flow in sorted(flows(objects), key=str):
        if flow.target.name != "ingest-api" or not flow.host:
            continue
        for container in flow.client.containers:
            if is_ours(container) and "LOGPIPE_TOKEN" not in environment.variables(objects, flow.client, container):
                yield f"{flow.client} calls {flow.target} without LOGPIPE_TOKEN"


def dockerfiles(objects: list[Object]) -> Iterator[str]:
    """The user of an image is a number, the same as in the manifests; the entry point is logpipe."""
    for workload, container in _ours(objects):
        file = ROOT / DOCKERFILES.get(container["image"].partition(":")[0], "missing")
        if not file.exists():
            continue
        text = file.read_text()
        users = re.findall(r"^USER +(\d+)", text, re.MULTILINE)
        pod = workload.pod.get("securityContext", {})
        wanted = container.get("securityContext", {}).get("runAsUser", pod.get("runAsUser"))
        if not users or users[-1] == "0":
            yield f"{file.relative_to(ROOT)} does not end with a user id other than 0"
        elif wanted is not None and str(wanted) != users[-1] and workload.component != "store":
            yield f"{workload} runs as user {wanted}, {file.relative_to(ROOT)} says {users[-1]}"
        if "command" not in container and not re.search(r"^ENTRYPOINT .*logpipe", text, re.MULTILINE):
            yield f"{workload}: {file.relative_to(ROOT)} has no entry point logpipe"


RULES: list[Rule] = [
    images,
    commands,
    names_of_settings,
    values_of_settings,
    allowed_hosts,
    tokens,
    dockerfiles,
]
