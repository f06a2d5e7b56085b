"""What kustomize makes of kubernetes/: every overlay, each component alone with the base, and all components together.

No cluster is needed. The folder is copied first, so that the example of the secrets can stand in for the real ones.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.skips import needs_program

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "kubernetes"
ALL = "all components"

_OLDEST = (5, 6)
"""The kustomize in kubectl 1.33, the oldest supported version. The one before crashes on the overlay `bench`."""


def _folders(kind: str) -> list[str]:
    return sorted(file.parent.name for file in (KUBERNETES / kind).glob("*/kustomization.yaml"))


OVERLAYS = _folders("overlays")
_PATCH_OTHERS = ("backup", "monitoring", "spark", "network-policies", "k6")
"""Components that change objects of other components, and so come after them, in this order."""

COMPONENTS = [name for name in _folders("components") if name not in _PATCH_OTHERS]
COMPONENTS += [name for name in _PATCH_OTHERS if name in _folders("components")]
NAMES = [*OVERLAYS, *(f"base with {name}" for name in COMPONENTS), ALL]
"""Every build. Only an overlay, or all components together, has both sides of each reference."""


class Builds:
    """Builds each name once. `folder` is empty, and belongs to this object."""

    def __init__(self, folder: Path) -> None:
        self._tree = folder / "kubernetes"
        shutil.copytree(KUBERNETES, self._tree, ignore=shutil.ignore_patterns("tests", "__pycache__"))
        shutil.copy(KUBERNETES / "secrets" / "example.env", self._tree / "secrets" / "logpipe.env")
        self.build = cache(self._build)

    def _build(self, name: str) -> list[Object]:
        if name in OVERLAYS:
            return run(self._tree / "overlays" / name)
        chosen = COMPONENTS if name == ALL else [name.removeprefix("base with ")]
        folder = self._tree / "built" / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)  # it exists when the build failed before
        text = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../../base", "../../secrets"],
            "components": [*(f"../../components/{component}" for component in chosen), "../../images"],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(text))
        return run(folder)


def run(folder: Path) -> list[Object]:
    """The objects that kustomize builds from this folder, in the order in which they are applied."""
    ended = subprocess.run([*command(), str(folder)], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise AssertionError(f"kustomize does not build {folder.name}:\n{ended.stderr}")
    if ended.stderr:  # a deprecated field, for example
        raise AssertionError(f"kustomize warns about {folder.name}:\n{ended.stderr}")
    return [each for each in yaml.load_all(ended.stdout, Loader=yaml.CSafeLoader) if each]


@cache
def command() -> tuple[str, ...]:
    """kustomize, or a kubectl that contains it. Skips the calling test if there is neither."""
    if program := shutil.which("kustomize"):
        return program, "build"
    if (program := shutil.which("kubectl")) and _contained_in(program) >= _OLDEST:
        return program, "kustomize"
    return needs_program("kustomize", "go install sigs.k8s.io/kustomize/kustomize/v5@v5.8.1, or kubectl 1.33 or later")


def _contained_in(kubectl: str) -> tuple[int, ...]:
    """The version of the kustomize in a kubectl, as major and minor number."""
    said = subprocess.run([kubectl, "version", "--client"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Kustomize Version: v(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else ()
