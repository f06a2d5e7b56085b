"""Which settings each command of logpipe reads."""

import importlib
import pkgutil
import sys
from functools import cache

import services.lake
import services.stores
from services.cli import COMMANDS
from services.runtime.settings import ListenSettings, Settings

_SHARED_ROOMS = (services.stores, services.lake)
"""Rooms with settings of their own that several processes use: a store is opened by name."""


@cache
def classes(command: str) -> set[type[Settings]]:
    """The classes of settings in the room of a command, and of the rooms that every process may use."""
    target = COMMANDS[command].target.partition(":")[0]
    importlib.import_module(target)
    rooms = [target.rpartition(".")[0] if target.startswith("services.") else target]
    for room in _SHARED_ROOMS:
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
        rooms.append(room.__name__)
    return {
        value
        for name, module in list(sys.modules.items())
        if any(name == room or name.startswith(f"{room}.") for room in rooms)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Settings) and value is not ListenSettings
    }


def variables(command: str) -> set[str]:
    """The variables that a command reads."""
    return {f"LOGPIPE_{field.upper()}" for each in classes(command) for field in each.model_fields}


@cache
def all_variables() -> set[str]:
    """The variables that any command reads, but for those of the local stack."""
    return {each for name, command in COMMANDS.items() if command.extras != "local" for each in variables(name)}
