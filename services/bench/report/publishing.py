"""Writes a report beside its evidence, and checks it again."""

from pathlib import Path
from typing import Any

import msgspec

from services.bench.evidence.folder import Evidence
from services.bench.report import html, markdown
from services.bench.report.numbers import summary
from services.core.errors import Invalid


def publish(evidence: Evidence) -> Path:
    """Write report.json, report.md and report.html; returns the path of the last. Blocks."""
    found = summary(evidence)
    (evidence.folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    (evidence.folder / "report.md").write_text(markdown.page(found))
    page = evidence.folder / "report.html"
    page.write_text(html.page(found))
    return page


def recheck(evidence: Evidence) -> list[str]:
    """Compute every number again. Return what is damaged, and which numbers of report.json differ; [] if all is well.

    Blocks. Raises Invalid if there is no report.
    """
    if damage := evidence.damage():
        return damage
    try:
        published = msgspec.json.decode((evidence.folder / "report.json").read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise Invalid(f"{evidence.folder} has no report: {error}") from error
    return list(_differences("", published, msgspec.to_builtins(summary(evidence))))


def _differences(place: str, published: Any, computed: Any) -> list[str]:
    if isinstance(published, dict) and isinstance(computed, dict):
        keys = dict.fromkeys([*published, *computed])
        return [
            each
            for key in keys
            for each in _differences(f"{place}.{key}" if place else key, published.get(key), computed.get(key))
        ]
    if isinstance(published, list) and isinstance(computed, list | tuple) and len(published) == len(computed):
        pairs = enumerate(zip(published, computed, strict=True))
        return [each for index, pair in pairs for each in _differences(f"{place}[{index}]", *pair)]
    return [] if published == computed else [f"{place}: the report says {published!r}, the evidence {computed!r}"]
