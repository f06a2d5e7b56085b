"""What a PromQL expression names: its metrics and labels. Enough for the expressions of this repository."""

import re

from services.core import metric_names
from services.core.metric_names import Metric

TARGET_LABELS = frozenset({"job", "instance", "container", "endpoint"})
"""The labels that Prometheus gives to each target, in the cluster and in the local stack."""

_KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset"})
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"\{([^}]*)\}")


def metrics_in(expression: str) -> set[str]:
    text = _GROUPING.sub(" ", _SELECTOR.sub(" ", re.sub(r'"[^"]*"', '""', expression)))
    text = re.sub(r"\[[^\]]*\]", " ", text)
    names = set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", text))
    return {name for name in names if name not in _KEYWORDS}


def labels_in(expression: str) -> set[str]:
    """The labels of selectors and groupings, without `le` of a histogram."""
    text = re.sub(r'"[^"]*"', '""', expression)
    grouped = (label.strip() for labels in _GROUPING.findall(text) for label in labels.split(","))
    selected = (label for labels in _SELECTOR.findall(text) for label in re.findall(r"\w+(?=\s*[=!])", labels))
    return {*grouped, *selected} - {"le", ""}


def own_metrics() -> dict[str, Metric]:
    """Name of each series that our processes serve -> its metric; a histogram has three."""
    found: dict[str, Metric] = {}
    for metric in vars(metric_names).values():
        if isinstance(metric, Metric):
            suffixes = ("_bucket", "_sum", "_count") if metric.type == "histogram" else ("",)
            found |= {metric.name + suffix: metric for suffix in suffixes}
    return found
