"""Reads plans: the one place that turns YAML into a `Plan`."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from services.bench.plan.lines import Place, parse
from services.bench.plan.schema import Plan
from services.core.errors import Invalid

_SHIPPED = files(__package__) / "shipped"


def shipped() -> tuple[str, ...]:
    """Return the names of the plans that come with the package."""
    return tuple(sorted(file.name.removesuffix(".yaml") for file in _SHIPPED.iterdir()))


def text_of(plan: str) -> str:
    """Return the text of a shipped plan, or of the file with this path. Raises Invalid."""
    if plan in shipped():
        return (_SHIPPED / f"{plan}.yaml").read_text()
    try:
        return Path(plan).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{plan} is no plan ({error}); the shipped plans are: {', '.join(shipped())}") from error


def parsed(text: str, name: str) -> Plan:
    """Return the plan. `name`: of the file, in errors. Raises Invalid, with a line for each mistake."""
    document, lines = parse(text, name)
    try:
        plan = Plan.model_validate({} if document is None else document)
    except ValidationError as error:
        found = [(tuple(each["loc"]), _told(tuple(each["loc"]), dict(each))) for each in error.errors()]
    else:
        found = list(_contradictions(plan))
        if not found:
            return plan
    mistakes = sorted({(_line(place, lines), told) for place, told in found})
    raise Invalid("\n".join(f"{name}:{line}: {told}" for line, told in mistakes))


def _contradictions(plan: Plan) -> Iterator[tuple[Place, str]]:
    if not any((plan.controls, plan.read, plan.write, plan.knee, plan.load)):
        yield (), "measures nothing: it has none of controls, read, write, knee, load"
    for part in ("mixed", "faults"):
        if getattr(plan, part) and plan.knee is None:
            yield (part,), f"{part}: needs knee, whose rate it takes a share of"
    if plan.knee and plan.write is None:
        yield ("knee",), "knee: needs write, whose request_rows and warm_up_seconds it uses"
    if plan.read and sorted(set(plan.read.rows)) != plan.read.rows:
        yield ("read", "rows"), "read.rows: must rise, because rows are only ever added"
    if plan.read and plan.read.states not in (["as-written"], ["compacted"], ["as-written", "compacted"]):
        yield ("read", "states"), "read.states: as-written comes before compacted"


def _told(place: Place, error: dict[str, Any]) -> str:
    where = ".".join(map(str, place))
    if error["type"] == "extra_forbidden":
        return f"unknown key {where}; there are: {', '.join(_keys(place[:-1]))}"
    if error["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {error['msg']}" if where else str(error["msg"])


def _keys(place: Place) -> list[str]:
    """Return the keys that the part of a plan at this place may have."""
    part: type[BaseModel] = Plan
    for key in place:
        annotation = part.model_fields[str(key)].annotation
        part = next(each for each in (annotation, *get_args(annotation)) if _is_part(each))
    return list(part.model_fields)


def _is_part(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _line(place: Place, lines: dict[Place, int]) -> int:
    """Return the line of the innermost place that the file has."""
    while place not in lines and place:
        place = place[:-1]
    return lines.get(place, 1)
