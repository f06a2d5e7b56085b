"""The page /footprints, a dashboard of requests, and its files. They are open: the figures that they query are not."""

from pathlib import Path

from fastapi import APIRouter, Response

from services.core.errors import NotFound

_FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    "": "text/plain; charset=utf-8",  # the licence
}
_FILES = {
    file.relative_to(_FOLDER).as_posix(): (file.read_bytes(), _TYPES[file.suffix])
    for file in _FOLDER.rglob("*")
    if file.is_file()
}
_HEADERS = {
    # Nothing of the page comes from elsewhere, and no text of a row can become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src"
    " 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.get("/footprints")
async def page() -> Response:
    return _file("index.html")


@router.get("/footprints/{name:path}")
async def file(name: str) -> Response:
    return _file(name)


def _file(name: str) -> Response:
    if name not in _FILES:
        raise NotFound(f"the page has no file {name[:100]!r}")
    body, content_type = _FILES[name]
    return Response(body, media_type=content_type, headers=_HEADERS)
