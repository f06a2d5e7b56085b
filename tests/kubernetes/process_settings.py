"""Which settings each command of logpipe reads."""

import importlib
import pkgutil
import sys
from functools import cache

import services.lake
import services.stores
from services.cli import COMMANDS
from services.runtime.settings import FootprintSettings, ListenSettings, Settings

STORE_ROOMS = (services.stores, services.lake)
"""Rooms of stores, with settings of their own: a process opens a store by name."""

OPENS_STORES = {"maintain", "query-api", "replay", "restore", "stream-to-store", "verify"}


@cache
def classes(command: str) -> set[type[Settings]]:
    """The classes of settings in the room of a command, and those of the stores if the command opens stores.

    A command that serves HTTP also reads those of request footprints.
    """
    target = COMMANDS[command].target.partition(":")[0]
    importlib.import_module(target)
    rooms = [target.rpartition(".")[0] if target.startswith("services.") else target]
    if command in OPENS_STORES:
        for room in STORE_ROOMS:
            for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
                importlib.import_module(module.name)
            rooms.append(room.__name__)
    found = {
        value
        for name, module in list(sys.modules.items())
        if any(name == room or name.startswith(f"{room}.") for room in rooms)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Settings) and value is not ListenSettings
    }
    listens = any(issubclass(each, ListenSettings) for each in found)
    return found | ({FootprintSettings} if listens else set())


def variables(command: str) -> set[str]:
    """The variables that a command reads."""
    return {f"LOGPIPE_{field.upper()}" for each in classes(command) for field in each.model_fields}


@cache
def all_variables() -> set[str]:
    """The variables that any command reads, but for those of the local stack."""
    return {each for name, command in COMMANDS.items() if command.extras != "local" for each in variables(name)}
