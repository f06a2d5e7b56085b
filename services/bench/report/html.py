"""The summary as one HTML file that works offline: data, styles, scripts and uPlot are inside."""

import html
from importlib.resources import files

import msgspec

from services.bench.report.summary import Summary

_PAGE = files(__package__) / "page"
_PARTS = {
    "uplot_css": "uplot/uPlot.min.css",
    "uplot_js": "uplot/uPlot.iife.min.js",
    "uplot_license": "uplot/LICENSE",
    "css": "page.css",
    "js": "page.js",
}


def page(summary: Summary) -> str:
    filled = (_PAGE / "page.html").read_text()
    # Within a script, only the end of the script's tag needs an escape.
    data = msgspec.json.encode(summary).decode().replace("<", "\\u003c")
    values = {name: (_PAGE / file).read_text() for name, file in _PARTS.items()}
    values |= {"title": html.escape(f"{summary.plan} - logpipe bench"), "data": data}
    for name, value in values.items():
        filled = filled.replace(f"{{{{{name}}}}}", value)
    return filled
