"""The rules: YAML, checked when it is read; whatever is wrong is named by rule and field."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from services.core.errors import NeedsOperator

DEFAULT_RULES = Path(__file__).with_name("rules.yaml")
_DAY = 86_400


def masked(url: SecretStr) -> str:
    """Return a URL for logs: the path, the query and the user of a webhook's address may be secrets."""
    parts = urlsplit(url.get_secret_value())
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}/..."


def _checked(url: SecretStr) -> SecretStr:
    try:
        parts = urlsplit(url.get_secret_value())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port that is no number
        usable = False
    if not usable:
        raise ValueError("must be an address such as https://host/path")
    return url


Webhook = Annotated[SecretStr, AfterValidator(_checked)]


class Rule(BaseModel):
    """`threshold` rows or more of a service within `window` seconds open an alert; fewer for `resolve_after` end it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=200)
    service: str = Field("*", min_length=1)
    threshold: int = Field(ge=1)
    window: int = Field(ge=1, le=_DAY)
    resolve_after: int = Field(ge=1, le=_DAY)
    webhook: Webhook | None = None

    def matches(self, service: str) -> bool:
        return fnmatchcase(service, self.service)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    rules: list[Rule]


def load(path: Path) -> list[Rule]:
    """Load the rules. Raises NeedsOperator, which names the rule and the field that are wrong."""
    try:
        content = yaml.safe_load(path.read_bytes())
        rules = _File.model_validate(content).rules
    except (OSError, yaml.YAMLError) as error:
        raise NeedsOperator(f"the alert rules cannot be read: {path}: {error}") from error
    except ValidationError as error:
        wrong = [f"{_place(content, problem['loc'])}{problem['msg']}" for problem in error.errors(include_input=False)]
        raise NeedsOperator("\n  ".join([f"the alert rules in {path} are wrong:", *wrong])) from None
    names = [rule.name for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise NeedsOperator(f"the alert rules in {path} are wrong: two rules have the name {', '.join(twice)}")
    return rules


def _place(content: Any, location: tuple[int | str, ...]) -> str:
    """rules.1.window -> "rule 2 (checkout), window: "."""
    match location:
        case ("rules", int(index), *rest):
            rule = content["rules"][index]
            name = f" ({rule['name']})" if isinstance(rule, dict) and rule.get("name") else ""
            return ", ".join([f"rule {index + 1}{name}", *map(str, rest)]) + ": "
    return "".join(f"{part}: " for part in location)
