"""YAML values together with the lines that they stand on."""

from typing import Any

import yaml

from services.core.errors import Invalid

Place = tuple[str | int, ...]
"""The keys and indexes that lead from the document to a value."""


def parse(text: str, name: str) -> tuple[Any, dict[Place, int]]:
    """Return the document, and the line of each place in it. `name`: of the file, in errors.

    The line of a value in a mapping is that of its key. Raises Invalid for what is no YAML, and for a key given twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Place, int] = {}
        if node is not None:
            _note(node, (), lines, name)
        return (None if node is None else loader.construct_document(node)), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Invalid(f"{name}:{line}: no YAML: {error.problem}") from error
    finally:
        loader.dispose()


def _note(node: yaml.Node, place: Place, lines: dict[Place, int], name: str) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, key.value)
            if inner in lines:
                raise Invalid(f"{name}:{key.start_mark.line + 1}: {key.value} is given twice")
            lines[inner] = key.start_mark.line + 1
            _note(value, inner, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note(value, (*place, index), lines, name)
