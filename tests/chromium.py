"""Drives a headless Chromium by its own protocol (CDP): a page is opened, read, clicked and typed into."""

import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from tests.skips import needs_package

_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
)
_PATIENCE = 60.0  # seconds; a busy machine makes no test fail
_KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Enter": 13, " ": 32}


class Session:
    """A connection to the browser or to one of its pages.

    `complaints`: what the browser logged of the page: errors of scripts, failed requests, breaches of its policy.
    """

    def __init__(self, url: str) -> None:
        self._opened = ExitStack()
        self._connection = self._opened.enter_context(connect(url, max_size=None))
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []

    def close(self) -> None:
        self._opened.close()

    def call(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(_PATIENCE))
            if message.get("id") == number:
                assert "error" not in message, message
                result: Mapping[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: Mapping[str, Any]) -> None:
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
            case "Log.entryAdded" if message["params"]["entry"]["level"] in ("error", "warning"):
                self.complaints.append(message["params"]["entry"]["text"])


class Page(Session):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def read(self, script: str) -> Any:
        """Return the value of an expression of the page. Raises AssertionError for its errors."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text of the first such element, '' where there is none."""
        return str(self.read(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.read(
            f"Array.from(document.querySelectorAll({json.dumps(selector)}), each => each.innerText)"
        )
        return found

    def until(self, condition: Callable[[], Any], about: Callable[[], Any] = lambda: "") -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < deadline, (about() or self.text("body"), self.complaints)
            time.sleep(0.05)

    def until_text(self, selector: str, pattern: str) -> None:
        self.until(lambda: re.search(pattern, self.text(selector)), lambda: (pattern, self.text(selector)))

    def click(self, selector: str) -> None:
        self.read(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key], **text)

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def prefer(self, scheme: str) -> None:
        """`scheme`: light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


@contextmanager
def chromium(folder: Path) -> Iterator[Callable[[], Page]]:
    """Start a browser, and yield a function that opens an empty page. `folder`: for the browser's own files."""
    program = shutil.which("chromium")
    if program is None:
        needs_package("chromium")
    words = [program, *_OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as browser:
        try:
            assert browser.stderr is not None
            found = next(filter(None, (re.search(r"ws://[\d.]+:\d+/\S+", line) for line in browser.stderr)))
            yield lambda: _new_page(found[0])
        finally:
            browser.kill()


def _new_page(browser_url: str) -> Page:
    with closing(Session(browser_url)) as browser:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    return Page(f"{browser_url.partition('/devtools/')[0]}/devtools/page/{target}")
