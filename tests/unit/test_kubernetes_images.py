"""`make images`: builds both images with the program that is there, and loads them into k3s."""

import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGES = [f"docker.io/log-pipeline/{name}:{VERSION}" for name in ("services", "spark-jobs")]

STUB = """#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
[ "$1" != info ] || exit "$DAEMON"
for word; do case $word in *.tar | docker-archive:*) file=${word#docker-archive:}; touch "${file%%:*}" ;; esac; done
"""


class Machine:
    """A PATH on which only these programs are, besides those of the shell; it records how they are called."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bin"
        self.path.mkdir()
        self.calls = folder / "calls"
        self.calls.touch()
        for name in ("sh", "sed", "tr", "mktemp", "mkdir", "rm", "basename", "dirname", "touch"):
            (self.path / name).symlink_to(Path("/usr/bin") / name)

    def build(self, *programs: str, daemon: bool = True, to: str = "") -> subprocess.CompletedProcess[str]:
        for name in programs:
            (self.path / name).write_text(STUB)
            (self.path / name).chmod(0o755)
        return subprocess.run(
            [str(ROOT / "kubernetes" / "images" / "build.sh")],
            env={"PATH": str(self.path), "CALLS": str(self.calls), "DAEMON": str(int(not daemon)), "TO": to},
            capture_output=True,
            text=True,
            check=False,
        )

    def called(self, start: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(start)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_manifests_name_the_version_that_is_built() -> None:
    pinned = yaml.safe_load((ROOT / "kubernetes" / "images" / "kustomization.yaml").read_text())["images"]
    ours = {each["name"]: each["newTag"] for each in pinned if each["name"].startswith("log-pipeline/")}
    assert ours == {"log-pipeline/services": VERSION, "log-pipeline/spark-jobs": VERSION}


@pytest.mark.parametrize("program", ["docker", "podman", "buildah"])
def test_both_images_are_built_and_loaded_into_k3s(machine: Machine, program: str) -> None:
    assert machine.build(program, "k3s").returncode == 0
    builds = machine.called(f"{program} build")
    assert [line.split("--tag ")[1] for line in builds] == [f"{image} ." for image in IMAGES]
    assert [line.split("--file ")[1].split()[0] for line in builds] == ["services/Dockerfile", "spark_jobs/Dockerfile"]
    assert len(machine.called("k3s ctr images import")) == 2


def test_a_docker_without_its_daemon_is_passed_over(machine: Machine) -> None:
    assert machine.build("docker", "podman", daemon=False).returncode == 0
    assert machine.called("docker build") == []
    assert len(machine.called("podman build")) == 2


def test_images_are_written_to_a_folder(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    assert machine.build("podman", to=str(folder)).returncode == 0
    assert sorted(file.name for file in folder.iterdir()) == ["services.tar", "spark_jobs.tar"]


def test_without_a_program_that_builds_the_user_is_told_which_to_install(machine: Machine) -> None:
    ended = machine.build("k3s")
    assert ended.returncode == 1
    assert "docker (with its daemon running), podman and buildah" in ended.stderr
    assert machine.called("k3s") == []
