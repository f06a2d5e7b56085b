"""`logpipe send` against a small ingest API in this process: what is sent, retried, rejected and resumed."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import pytest
import zstandard
from click.testing import CliRunner, Result

from services.core.errors import InvalidRow, KeyReused
from services.core.ledger import FORMER_LEDGERS_HEADER, LEDGER_HEADER
from services.core.rows import RowCodec
from services.datasets import find
from services.ingest_client import client
from services.send import transfer
from services.send.chunks import Chunker, Reject
from services.send.formats import FORMATS
from services.send.main import main
from services.send.parse import Defaults, TextParser, Unparsed
from services.send.report import RejectsFile
from services.send.requests import RequestParser
from services.send.source import Mark, Source
from services.send.times import Window
from services.send.years import of_pipe
from tests.log_samples import LINES, NAMES, samples
from tests.waiting import until

Answer = tuple[int, dict[str, str], dict[str, Any]]


class Ingest(ThreadingHTTPServer):
    """Keeps rows by Idempotency-Key. `meddle` may answer a request in its place; it gets (number, key, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.dataset = find("logs")
        self.ledger: str | None = str(uuid4())
        self.former: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, bytes]] = []
        self.tokens: set[str] = set()
        self.looks = 0
        self.meddle: Callable[[int, str, bytes], Answer | str | None] = lambda number, key, body: None
        self.pieces: Callable[[BinaryIO, int], Iterable[bytes]] = lambda file, size: [file.read(size)]
        self._lock = threading.Lock()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for body in list(self.stored.values()) for line in body.split(b"\n")]

    @property
    def messages(self) -> list[str]:
        return sorted(row["message"] for row in self.rows)

    def answer(self, key: str, body: bytes, wanted: str | None) -> Answer | str:
        """What to reply; "drop": store and hang up."""
        with self._lock:
            self.requests.append((key, body))
            number = len(self.requests)
        meddled = self.meddle(number, key, body)
        if meddled and meddled != "drop":
            return meddled
        with self._lock:
            if wanted not in (None, self.ledger):
                return 412, {}, {"detail": f"the rows are meant for ledger {wanted}"}
            if (before := self.stored.get(key)) is not None and before != body:
                return 422, {}, {"title": KeyReused.title, "detail": "same key, another body"}
            try:
                count = RowCodec(self.dataset).decode_lines(body).count
            except InvalidRow as error:
                return 422, {}, {"detail": str(error), "index": error.index, "field": error.field}
            self.stored[key] = body
        if meddled:
            return meddled
        return (
            200,
            {},
            {"status": "accepted", "type": self.dataset.name, "count": count, "duplicate": before is not None},
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Ingest

    def do_GET(self) -> None:
        assert self.path == "/api/collect/health"
        self.server.looks += 1
        ledger, former = self.server.ledger, ",".join(self.server.former)
        headers = {} if ledger is None else {LEDGER_HEADER: ledger, FORMER_LEDGERS_HEADER: former}
        self.reply(200, headers, {"status": "UP"})

    def do_POST(self) -> None:
        assert self.path == f"/api/collect/{self.server.dataset.plural}"
        assert self.headers["Content-Type"] == "application/x-ndjson"
        self.server.tokens.add(self.headers.get("Authorization", ""))
        body = b"".join(self.server.pieces(cast(BinaryIO, self.rfile), int(self.headers["Content-Length"])))
        answer = self.server.answer(self.headers["Idempotency-Key"], body, self.headers.get(LEDGER_HEADER))
        if isinstance(answer, str):
            self.close_connection = True
            self.connection.close()
            return
        self.reply(*answer)

    def reply(self, status: int, headers: dict[str, str], content: dict[str, Any]) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(encoded))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def ingest() -> Iterator[Ingest]:
    server = Ingest()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def environment(ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_INGEST_URL", ingest.url)
    monkeypatch.setenv("LOGPIPE_SEND_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("LOGPIPE_SEND_REQUEST_ROWS", "10")
    monkeypatch.delenv("LOGPIPE_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


def send(*args: str) -> Result:
    return CliRunner().invoke(main, args, catch_exceptions=False)


def lines(first: int, last: int) -> str:
    return "".join(f"2024-01-01 00:00:{n % 60:02},000 INFO a.B: m{n:04}\n" for n in range(first, last + 1))


def messages(first: int, last: int) -> list[str]:
    return [f"m{n:04}" for n in range(first, last + 1)]


def write(text: str | bytes, name: str = "app.log") -> str:
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def figure(result: Result, label: str) -> int:
    line = next(line for line in result.stdout.splitlines() if label in line)
    return int(line.replace(label, "").strip("│ ").split()[0].replace(",", ""))


def test_every_line_is_sent_once(ingest: Ingest) -> None:
    result = send(write(lines(1, 95)))
    assert result.exit_code == 0
    assert ingest.messages == messages(1, 95)
    assert "format log4j: 95 of the first 95 lines" in result.stderr
    assert (figure(result, "lines read"), figure(result, "rows acked"), figure(result, "rejected")) == (95, 95, 0)
    assert len(ingest.stored) == 10
    assert not Path("app.log.rejects").exists()
    send("app.log")
    assert len(ingest.rows) == 190  # a second send is a new one


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_compression_is_known_by_the_content(ingest: Ingest, pack: Callable[[bytes], bytes]) -> None:
    half = lines(1, 20).encode(), lines(21, 35).encode()
    assert send(write(pack(half[0]) + pack(half[1]))).exit_code == 0
    assert ingest.messages == messages(1, 35)


def test_a_gzip_file_cut_short_sends_what_can_be_read(ingest: Ingest) -> None:
    packed = gzip.compress(lines(1, 300).encode())
    result = send(write(packed[: len(packed) // 2]))
    assert result.exit_code == 1
    assert "the compressed file is broken" in result.stderr
    assert 0 < len(ingest.rows) < 300
    write(packed)
    assert send("app.log", "--resume").exit_code == 0
    assert ingest.messages == messages(1, 300)


ACCESS = """\
a.example:443 10.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "GET /items/7?token=secret HTTP/1.1" 200 5 "-" "curl"
10.1.1.2 - - [10/Oct/2000:13:55:37 -0700] "POST / HTTP/2.0" 503 - "-" "curl"
10.1.1.3 - - [10/Oct/2000:13:55:38 +0000] "\\x16\\x03\\x01" 400 150 "-" "-"
"""


def test_an_access_log_becomes_footprints(ingest: Ingest) -> None:
    ingest.dataset = find("footprints")
    result = send(write(ACCESS, "access.log"), "--dataset", "footprints")
    assert ingest.rows == [
        {
            "method": "GET",
            "link": "/items/7",
            "footprint_time": "2000-10-10T13:55:36Z",
            "status": 200,
            "service": "a.example:443",
        },
        {
            "method": "POST",
            "link": "/",
            "footprint_time": "2000-10-10T20:55:37Z",
            "status": 503,
            "service": "http",
        },
    ]
    assert (result.exit_code, figure(result, "rejected")) == (2, 1)
    assert "format combined: 2 of the first 3 lines parse" in result.stderr
    assert "no request such as GET /path HTTP/1.1" in Path("access.log.rejects").read_text()


@pytest.mark.parametrize(
    ("request_line", "method", "link"),
    [
        ("GET http://user:pw@h/a?x HTTP/1.1", "GET", "/a"),
        ("GET https://user:pw@h?x HTTP/1.1", "GET", "/"),
        ("GET /a/http://b/@c?x HTTP/1.1", "GET", "/a/http://b/@c"),
        ("CONNECT user:pw@h:443 HTTP/1.1", "CONNECT", "h:443"),
        ("OPTIONS * HTTP/1.1", "OPTIONS", "*"),
        ("M-SEARCH * HTTP/1.1", "M-SEARCH", "*"),
        ("VERSION-CONTROL /a HTTP/1.1", "VERSION-CONTROL", "/a"),
    ],
)
def test_the_method_and_the_path_of_a_request(request_line: str, method: str, link: str) -> None:
    parser = RequestParser(FORMATS["common"], UTC, Window(), Defaults())
    found = json.loads(parser.row(f'10.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "{request_line}" 200 5'))
    assert (found["method"], found["link"]) == (method, link)


@pytest.mark.parametrize("method", ["", "G(T", "G\u00c9T", "\\x16\\x03", "G:T"])
def test_what_is_no_method_makes_no_request(method: str) -> None:
    parser = RequestParser(FORMATS["common"], UTC, Window(), Defaults())
    with pytest.raises(Unparsed, match="no request"):
        parser.row(f'10.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "{method} / HTTP/1.1" 200 5')


def test_a_resumed_send_keeps_its_dataset(ingest: Ingest) -> None:
    ingest.dataset = find("footprints")
    send(write(ACCESS, "access.log"), "--dataset", "footprints")
    with Path("access.log").open("a") as file:
        file.write(ACCESS.splitlines()[0] + "\n")
    assert "has --dataset footprints, not logs" in send("access.log", "--resume", "--dataset", "logs").stderr
    assert send("access.log", "--resume").exit_code == 0
    assert len(ingest.rows) == 3


def test_any_dataset_is_sent_as_ndjson(ingest: Ingest) -> None:
    ingest.dataset = find("events")
    event = {"eventId": str(uuid4()), "eventType": "click", "userId": "u", "timestamp": "2026-01-31T12:00:00Z"}
    result = send(write(json.dumps(event) + "\n"), "--dataset", "events")
    assert result.exit_code == 0, result.output
    assert ingest.rows == [event]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--format", "syslog"), "rows of footprints are made of the formats ndjson, combined, common, not of syslog"),
        (("--level", "INFO"), "--pattern, --level and --host are for the dataset logs, not for footprints"),
        ((), "rows of footprints are made of ndjson, combined, common"),
    ],
)
def test_what_gives_no_footprints_is_refused(ingest: Ingest, options: tuple[str, ...], reason: str) -> None:
    result = send(write(lines(1, 5)), "--dataset", "footprints", *options)
    assert result.exit_code == 1
    assert reason in result.stderr
    assert ingest.requests == []


def test_odd_lines(ingest: Ingest) -> None:
    text = (
        b"\xef\xbb\xbf2024-01-01 00:00:00,000 INFO a.B: bom\r\n"
        b"\r\n   \n"
        b"2024-01-01 00:00:00,000 INFO a.B: caf\xe9\n"
        b"2024-01-01 00:00:00,000 INFO a.B: nul \x00\n"
        b"2024-01-01 00:00:00 no log line\ttab\n"
        b"1950-01-01 00:00:00,000 INFO a.B: too early\n"
        b"2024-02-31 00:00:00,000 INFO a.B: no such day\n"
        b"2024-01-01 00:00:00,000 INFO a.B: "
        + b"x" * 3_000_000
        + b"\n2024-01-01 00:00:00,000 INFO a.B: "
        + b"y" * 300_000
        + b"\n2024-01-01 00:00:00,000 INFO a.B: no newline"
    )
    result = send(write(text), "--format", "log4j")
    assert result.exit_code == 2
    assert ingest.messages == ["bom", "café", "no newline"]
    rejects = [line.split(b"\t", 2) for line in Path("app.log.rejects").read_bytes().splitlines()]
    rejects.sort(key=lambda reject: int(reject[0]))  # chunks are acked in any order
    reasons = {int(line): reason.decode() for line, reason, _ in rejects}
    assert list(reasons) == [5, 6, 7, 8, 9, 10]
    assert "NUL" in reasons[5]
    assert "does not match" in reasons[6]
    assert "1970" in reasons[7]
    assert "not a time" in reasons[8]
    assert "1048576 bytes or more" in reasons[9]
    assert "the row takes" in reasons[10]
    assert rejects[1][2] == b"2024-01-01 00:00:00 no log line\ttab"
    assert (figure(result, "lines read"), figure(result, "rejected"), figure(result, "blank")) == (11, 6, 2)
    assert figure(result, "not UTF-8 (read as Latin-1)") == 1


JAVA = (
    "java.lang.RuntimeException: no answer\n"
    "\tat org.acme.Client.call(Client.java:1480)\n"
    "\n"
    "Caused by: java.net.ConnectException: refused\n"
    "\t... 12 more"
)
PYTHON = 'Traceback (most recent call last):\n  File "app.py", line 3, in <module>\n    main()\nValueError: no such day'


def test_a_reason_forges_no_reject_and_sends_no_escape_codes(tmp_path: Path) -> None:
    rejects = RejectsFile(str(tmp_path / "rejects"), append=False)
    rejects.write([Reject(7, "a\nb\tc\rd\x1b[31me\x85f\u2028g \u00e9\ud800", b"raw\tline\n")])
    rejects.close()
    expected = r"a\nb\tc\rd\x1b[31me\x85f\u2028g " + "\u00e9" + r"\ud800"
    assert (tmp_path / "rejects").read_bytes() == f"7\t{expected}\traw\tline\n".encode()


def test_a_rejects_file_is_closed_to_others_as_its_log_may_be(tmp_path: Path) -> None:
    rejects = RejectsFile(str(tmp_path / "rejects"), append=True)
    rejects.write([Reject(1, "no log line", b"password=secret")])
    rejects.close()
    assert (tmp_path / "rejects").stat().st_mode & 0o777 == 0o600


def rejects() -> list[tuple[int, str, str]]:
    """(line, reason, the line itself) of each, in order of lines."""
    found = [line.split("\t", 2) for line in Path("app.log.rejects").read_text().splitlines()]
    return sorted((int(line), reason, raw) for line, reason, raw in found)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("trace", [JAVA, PYTHON], ids=["java", "python"])
def test_a_stack_trace_is_joined_to_its_line(ingest: Ingest, trace: str, pack: Callable[[bytes], bytes]) -> None:
    result = send(write(pack(f"{lines(1, 2)}{trace}\n{lines(3, 4)}{trace}".encode())))
    assert result.exit_code == 0
    joined = trace.replace("\n\n", "\n")  # blank lines stay blank
    assert ingest.messages == ["m0001", f"m0002\n{joined}", "m0003", f"m0004\n{joined}"]
    assert figure(result, "joined to the line before") == 8
    assert figure(result, "lines read") == 4 + 8 + figure(result, "blank")


def test_a_trace_where_only_its_looks_tell(ingest: Ingest) -> None:
    text = f"Dec 10 06:55:46 h a: failed\n{PYTHON}\nwhat is this\n\tat nowhere\nDec 10 06:55:47 h a: fine\n"
    result = send(write(text))
    assert result.exit_code == 2
    assert ingest.messages == [f"failed\n{PYTHON}", "fine"]
    # What follows a rejected line goes with it, not to the row before.
    assert [(line, raw) for line, _, raw in rejects()] == [(6, "what is this"), (7, "\tat nowhere")]


def test_a_trace_without_its_line_is_rejected(ingest: Ingest) -> None:
    result = send(write(f"{PYTHON}\n{lines(1, 3)}"))
    assert result.exit_code == 2
    assert ingest.messages == messages(1, 3)
    assert [(line, raw) for line, _, raw in rejects()] == list(enumerate(PYTHON.splitlines(), 1))


def test_a_refused_row_goes_to_the_rejects_with_all_its_lines(ingest: Ingest) -> None:
    result = send(write(f"{lines(1, 1)}{lines(2, 2).rstrip()} \x00\n{PYTHON}\n{lines(3, 3)}"))
    assert result.exit_code == 2
    assert ingest.messages == ["m0001", "m0003"]
    assert [line for line, _, _ in rejects()] == [2, 3, 4, 5, 6]
    assert {reason for _, reason, _ in rejects()} == {"message: contains the character NUL (\\u0000)"}


def cri(stream: str, tag: str, message: str) -> str:
    return f"2024-05-01T12:00:00.123456789Z {stream} {tag} {message}\n"


def docker(log: str, stream: str = "stdout") -> str:
    return json.dumps({"log": log, "stream": stream, "time": "2024-05-01T12:00:00.123456789Z"}) + "\n"


def test_the_parts_of_a_cri_record_are_joined_across_another_stream(ingest: Ingest) -> None:
    text = (
        cri("stdout", "P", "first half, ")
        + cri("stderr", "F", "written in between")
        + cri("stdout", "P:x", "middle, ")
        + cri("stdout", "F", "second half")
        + cri("stdout", "F", "another")
    )
    result = send(write(text))
    assert result.exit_code == 0
    assert "format cri: 5 of the first 5 lines" in result.stderr
    assert [(row["message"], row["metadata"], row["host"]) for row in ingest.rows] == [
        ("first half, middle, second half", {"stream": "stdout"}, ""),
        ("written in between", {"stream": "stderr"}, ""),
        ("another", {"stream": "stdout"}, ""),
    ]
    assert (figure(result, "lines read"), figure(result, "joined to the line before")) == (5, 2)


def test_the_parts_of_a_docker_record_are_joined(ingest: Ingest) -> None:
    text = (
        docker("ready\n")
        + docker("first part ")
        + docker("oops\n", "stderr")
        + docker("second part\n")
        + docker("\x1b[32mgreen\x1b[0m\r\n").replace('"time"', '"attrs": {"tag": "web"}, "time"')
    )
    result = send(write(text))
    assert result.exit_code == 0
    assert "format docker: 5 of the first 5 lines" in result.stderr
    assert [(row["message"], row["metadata"]) for row in ingest.rows] == [
        ("ready", {"stream": "stdout"}),
        ("first part second part", {"stream": "stdout"}),
        ("oops", {"stream": "stderr"}),
        ("green", {"tag": "web", "stream": "stdout"}),
    ]


@pytest.mark.parametrize("whole", [lambda m: cri("stdout", "F", m), lambda m: docker(f"{m}\n")], ids=["cri", "docker"])
def test_a_request_does_not_end_within_a_record_of_parts(ingest: Ingest, whole: Callable[[str], str]) -> None:
    """Requests have 10 lines here; the parts lie at lines 10 and 12."""
    part = cri("stdout", "P", "split ") if whole("") == cri("stdout", "F", "") else docker("split ")
    other = cri("stderr", "F", "other") if part.startswith("2") else docker("other\n", "stderr")
    text = "".join(map(whole, messages(1, 9))) + part + other + whole("record") + "".join(map(whole, messages(10, 15)))
    result = send(write(text))
    assert result.exit_code == 0
    assert ingest.messages == sorted([*messages(1, 15), "split record", "other"])
    assert sorted(body.count(b"\n") + 1 for _, body in ingest.requests) == [6, 11]


def test_a_record_of_too_many_parts_is_cut(ingest: Ingest) -> None:
    text = cri("stdout", "P", "x" * 10_000) * 9 + cri("stdout", "F", "end") + cri("stdout", "F", "next")
    result = send(write(text))
    assert result.exit_code == 2
    assert sorted(map(len, ingest.messages)) == [4, 60_000 + len("\n[cut at 64 KiB]")]
    assert [line for line, _, _ in rejects()] == [7, 8, 9, 10]


def test_json_that_is_no_row_is_refused_at_once(ingest: Ingest) -> None:
    result = send(write('{"ts": 1714564800, "msg": "x"}\n' * 5))
    assert result.exit_code == 1
    assert "as a row of the ingest API: row 0" in result.stderr
    assert not ingest.requests


@pytest.mark.parametrize("hole", [512, (3 << 20) + 17, 1 << 20])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_hole_of_nuls_is_dropped(ingest: Ingest, hole: int, pack: Callable[[bytes], bytes]) -> None:
    result = send(write(pack(b"\0" * hole + lines(1, 2).encode() + b"\0" * 10 + lines(3, 3).encode() + b"\0" * hole)))
    assert result.exit_code == 0
    assert ingest.messages == messages(1, 3)


def test_a_file_that_grows_behind_a_hole_goes_on(ingest: Ingest) -> None:
    start = b"\0" * (2 << 20) + lines(1, 2).encode() + b"\0" * 100
    assert send(write(start)).exit_code == 0
    write(start + b"\0" * 50 + lines(3, 4).encode())
    assert send("app.log", "--resume").exit_code == 0
    assert ingest.messages == messages(1, 4)


def test_colours_are_no_part_of_a_line(ingest: Ingest) -> None:
    coloured = (
        "2024-05-01 12:00:00,123 \x1b[32mINFO\x1b[0m [main] a.App: started\n"
        "\x1b[2m2024-05-01T12:00:02.000Z\x1b[0m \x1b[33m WARN\x1b[0m \x1b[35m4711\x1b[0m --- [main] a.Slow : took 2 s\n"
    )
    assert send(write(coloured)).exit_code == 0
    assert [(row["level"], row["service"], row["message"]) for row in ingest.rows] == [
        ("INFO", "a.App", "started"),
        ("WARN", "a.Slow", "took 2 s"),
    ]


def test_a_byte_order_mark_before_a_single_line(ingest: Ingest) -> None:
    result = send(write(b"\xef\xbb\xbf" + lines(1, 1).replace("\n", "\r").encode()))
    assert result.exit_code == 0
    assert ingest.messages == messages(1, 1)


def test_what_follows_the_gzip_data_is_left_out_and_told(ingest: Ingest) -> None:
    packed = gzip.compress(lines(1, 5).encode()) + gzip.compress(lines(6, 10).encode())
    result = send(write(packed + b"garbage"))
    assert (result.exit_code, ingest.messages) == (0, messages(1, 10))
    assert "is no gzip: left out" in result.stderr
    result = send("app.log", "--resume")
    assert (result.exit_code, figure(result, "rows acked")) == (0, 0)


def test_a_dated_line_of_a_message_is_part_of_it(ingest: Ingest) -> None:
    table = "2024-04-30 | orders | 17\n2024-05-01 | orders | 19"
    result = send(write(f"{lines(1, 1)}{table}\n{JAVA}\n{lines(2, 2)}"))
    assert result.exit_code == 0
    assert [m.partition("\n")[0] for m in ingest.messages] == messages(1, 2)
    assert table in ingest.messages[0]


def test_a_file_that_was_rotated_goes_on_under_its_new_name(ingest: Ingest) -> None:
    send(write(lines(1, 20)), "--host", "h1")
    write(lines(1, 30))
    Path("app.log").rename("app.log.1")
    write(lines(31, 31))
    result = send("app.log", "--resume")
    assert result.exit_code == 1
    assert "go on with the rotated file first" in result.stderr
    result = send("app.log.1", "--resume")
    assert (result.exit_code, figure(result, "rows acked")) == (0, 10)
    assert f"the file was {Path('app.log').resolve()} before" in result.stderr
    Path("app.log.1.gz").write_bytes(gzip.compress(Path("app.log.1").read_bytes()))
    assert figure(send("app.log.1.gz", "--resume"), "rows acked") == 0
    assert figure(send("app.log.1", "--resume"), "rows acked") == 0  # the record goes with the text, there and back
    assert figure(send("app.log", "--resume"), "rows acked") == 1
    write(lines(31, 33))
    assert figure(send("app.log", "--resume"), "rows acked") == 2
    assert ingest.messages == messages(1, 33)
    assert {row["host"] for row in ingest.rows} == {"h1"}


def test_a_chunk_under_way_is_sent_again_after_a_rotation(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_SEND_PATIENCE", "0")
    text = "".join(f"2024-01-01 00:00:00,000 [WARN] {m}\n" for m in messages(1, 14))  # the service is the file's name
    ingest.meddle = lambda number, key, body: "drop"
    assert send(write(text)).exit_code == 1
    ingest.meddle = lambda number, key, body: None
    Path("app.log").rename("app-20240101.log")
    write(lines(15, 15))
    assert send("app.log", "--resume").exit_code == 1
    assert send("app-20240101.log", "--resume").exit_code == 0
    assert send("app.log", "--resume").exit_code == 0
    assert ingest.messages == messages(1, 15)
    assert {row["service"] for row in ingest.rows} == {"app", "a.B"}


def test_a_chunk_under_way_that_an_earlier_release_read_otherwise_counts_as_stored(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPIPE_SEND_PATIENCE", "0")
    ingest.meddle = lambda number, key, body: "drop"
    assert send(write(lines(1, 14))).exit_code == 1
    ingest.meddle = lambda number, key, body: None
    ingest.stored = {key: body.replace(b"WARN", b"ERROR") for key, body in ingest.stored.items()}
    assert ingest.stored
    result = send("app.log", "--resume")
    assert result.exit_code == 0
    assert figure(result, "rows acked") == 14
    assert ingest.messages == messages(1, 14)


def test_a_copy_that_is_resumed_first_does_not_double_the_file(ingest: Ingest) -> None:
    send(write(lines(1, 20)))
    write(lines(1, 20), "app.log.copy")
    assert figure(send("app.log.copy", "--resume"), "rows acked") == 0
    assert figure(send("app.log", "--resume"), "rows acked") == 0
    assert len(ingest.rows) == 20


def test_the_record_of_a_file_of_another_name_is_not_taken(ingest: Ingest) -> None:
    send(write(lines(1, 20)))
    result = send(write(lines(1, 30), "other.log"), "--resume")
    assert result.exit_code == 1
    assert "no record of an earlier send" in result.stderr


def slowly(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        time.sleep(0.2)  # a link of 160 kB/s
        yield (piece := file.read(min(size, 32 << 10)))
        size -= len(piece)


def test_a_slow_upload_goes_on_while_it_moves(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_SEND_PATIENCE", "0")
    monkeypatch.setattr(transfer, "STALLED_SECONDS", 2.0)
    monkeypatch.setattr(client, "_SEND_BUFFER", 16 << 10)
    ingest.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    ingest.pieces = slowly
    started = time.monotonic()
    result = send(write(lines(1, 1).strip() + "x" * 230_000 + "\n" + lines(2, 2).strip() + "x" * 230_000 + "\n"))
    assert result.exit_code == 0, result.stderr
    assert time.monotonic() - started > 2.0
    assert len(ingest.requests) == 1


def test_an_upload_that_stands_still_is_given_up(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_SEND_PATIENCE", "0")
    monkeypatch.setattr(transfer, "STALLED_SECONDS", 0.3)
    held = threading.Event()
    ingest.pieces = lambda file, size: [b""] if held.wait(60) else []
    result = send(write(lines(1, 3)))
    held.set()
    assert result.exit_code == 1
    assert "gave up after 0 s" in result.stderr


def test_a_request_does_not_end_within_a_record(ingest: Ingest) -> None:
    """Requests have 10 lines here."""
    text = f"{lines(1, 9)}{PYTHON}\n{lines(10, 19)}{JAVA}\n{lines(20, 20)}"
    result = send(write(text))
    assert result.exit_code == 0
    assert [body.count(b"\n") + 1 for _, body in sorted(ingest.requests, key=lambda r: r[1])] == [9, 10, 1]
    assert [m for m in ingest.messages if "\n" in m] == [
        f"m0009\n{PYTHON}",
        "m0019\n" + JAVA.replace("\n\n", "\n"),
    ]


def test_an_endless_record_is_cut_and_the_rest_is_rejected(ingest: Ingest) -> None:
    frame = "\tat " + "x" * 995
    result = send(write(f"{lines(1, 1)}" + f"{frame}\n" * 300 + lines(2, 25)))
    assert result.exit_code == 2
    assert ingest.messages[0] == f"m0001{f'{chr(10)}{frame}' * 65}\n[cut at 64 KiB]"
    assert ingest.messages[1:] == messages(2, 25)
    assert [line for line, _, _ in rejects()] == list(range(67, 302))
    assert figure(result, "lines read") == 325 == 25 + 65 + figure(result, "rejected")


def test_a_file_that_ended_within_a_record(ingest: Ingest) -> None:
    """What was sent stays as it was sent: its key stands for that."""
    start, end = PYTHON.split("    main()", 1)
    write(f"{lines(1, 2)}{start}")
    assert send("app.log").exit_code == 0
    write(f"{lines(1, 2)}{start}    main(){end}\n{lines(3, 14)}")
    result = send("app.log", "--resume")
    assert result.exit_code == 2
    assert ingest.messages == ["m0001", f"m0002\n{start.rstrip()}", *messages(3, 14)]
    assert [(line, raw) for line, _, raw in rejects()] == [(5, "    main()"), (6, end.strip())]


def test_a_trace_in_a_request_that_was_under_way(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_SEND_PATIENCE", "0")
    text = f"{lines(1, 9)}{PYTHON}\n{lines(10, 19)}{PYTHON}\n{lines(20, 29)}"
    ingest.meddle = lambda number, key, body: "drop"
    assert send(write(text)).exit_code == 1
    ingest.meddle = lambda number, key, body: None
    write(text + lines(30, 33))
    assert send("app.log", "--resume").exit_code == 0
    assert [m.partition("\n")[0] for m in ingest.messages] == messages(1, 33)
    assert [m for m in ingest.messages if "\n" in m] == [f"m0009\n{PYTHON}", f"m0019\n{PYTHON}"]


def test_ndjson_is_validated_line_by_line(ingest: Ingest) -> None:
    good = '{"timestamp":"2024-01-01T00:00:00Z","level":"INFO","service":"s","message":"ok"}\n'
    bad = [
        '{"level":"INFO"}',
        "[]",
        '{"timestamp":',
        good.replace("ok", "\\u0000").strip(),
        good.replace("ok", "\\ud800"),
    ]
    result = send(write(good + "\n".join(bad) + good))
    assert result.exit_code == 2
    assert ingest.messages == ["ok", "ok"]
    assert [line.split("\t")[0] for line in Path("app.log.rejects").read_text().splitlines()] == [
        "2",
        "3",
        "4",
        "5",
        "6",
    ]


def test_failures_are_retried_under_the_same_key(ingest: Ingest) -> None:
    failures: dict[int, Answer | str] = {
        1: (503, {"Retry-After": "1"}, {"detail": "full"}),
        2: (409, {}, {"detail": "still running"}),
        3: "drop",
        4: (502, {}, {}),
        5: (408, {}, {"detail": "the body came too slowly"}),
    }
    ingest.meddle = lambda number, key, body: failures.get(number)
    started = time.monotonic()
    result = send(write(lines(1, 10)))
    assert result.exit_code == 0
    assert time.monotonic() - started >= 1
    assert len({key for key, _ in ingest.requests}) == 1
    assert len(ingest.requests) == 6
    assert ingest.messages == messages(1, 10)
    assert figure(result, "of them duplicates") == 10  # the dropped reply's rows were stored


def test_a_row_that_only_ingest_refuses_is_left_out(ingest: Ingest) -> None:
    def refuse(number: int, key: str, body: bytes) -> Answer | None:
        rows = body.split(b"\n")
        bad = next((i for i, row in enumerate(rows) if b"m0003" in row or b"m0007" in row), None)
        return None if bad is None else (422, {}, {"detail": f"row {bad}: no", "index": bad, "field": "message"})

    ingest.meddle = refuse
    result = send(write(lines(1, 10)))
    assert result.exit_code == 2
    assert ingest.messages == [m for m in messages(1, 10) if m not in ("m0003", "m0007")]
    assert len({key for key, _ in ingest.requests}) == 3
    assert [line.split("\t")[0] for line in Path("app.log.rejects").read_text().splitlines()] == ["3", "7"]


def test_giving_up_says_how_to_go_on_and_going_on_works(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_SEND_PATIENCE", "0.3")
    monkeypatch.setenv("LOGPIPE_SEND_IN_FLIGHT", "3")
    # One reply is lost, and from then on nothing works: that chunk's fate is unknown to the sender.
    ingest.meddle = lambda number, key, body: "drop" if b"m0031" in body else (503, {}, {}) if number > 3 else None
    result = send(write(lines(1, 95)))
    assert result.exit_code == 1
    assert "gave up after 0.3 s" in result.stderr
    assert "logpipe send --resume app.log" in result.stderr
    before = len(ingest.requests)
    ingest.meddle = lambda number, key, body: None
    result = send("app.log", "--resume")
    assert result.exit_code == 0
    assert ingest.messages == messages(1, 95)
    assert 0 < len(ingest.requests) - before < 10  # what was acked is not sent again
    done = len(ingest.requests)
    assert send("app.log", "--resume").exit_code == 0
    assert len(ingest.requests) == done


@pytest.mark.parametrize("ended", [True, False], ids=["whole last line", "no newline yet"])
def test_a_file_that_grew_while_a_chunk_was_under_way(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    monkeypatch.setenv("LOGPIPE_SEND_PATIENCE", "0")
    ingest.meddle = lambda number, key, body: "drop"
    write(lines(1, 14) if ended else lines(1, 14).rstrip("\n"))
    assert send("app.log").exit_code == 1
    ingest.meddle = lambda number, key, body: None
    write(lines(1, 27))
    assert send("app.log", "--resume").exit_code == 0
    assert ingest.messages == messages(1, 27)
    write(lines(1, 33))
    assert send("app.log", "--resume").exit_code == 0
    assert ingest.messages == messages(1, 33)


def test_a_line_finished_later_is_not_sent_as_a_changed_one(ingest: Ingest) -> None:
    write(lines(1, 3).rstrip("\n"))
    assert send("app.log").exit_code == 0
    write(lines(1, 5))
    result = send("app.log", "--resume")
    assert result.exit_code == 0
    assert ingest.messages == messages(1, 5)
    assert figure(result, "lines read") == 2


def test_another_file_under_the_same_name_is_refused(ingest: Ingest) -> None:
    send(write(lines(1, 20)))
    write(lines(101, 130))
    result = send("app.log", "--resume")
    assert result.exit_code == 1
    assert "send it without --resume" in result.stderr
    assert len(ingest.rows) == 20


def test_a_resumed_run_keeps_its_options(ingest: Ingest) -> None:
    write(lines(1, 3))
    send("app.log", "--host", "h1", "--timezone", "Europe/Berlin")
    write(lines(1, 5))
    result = send("app.log", "--resume", "--host", "h2")
    assert result.exit_code == 1
    assert "--host h1" in result.stderr
    assert send("app.log", "--resume").exit_code == 0
    assert {(row["host"], row["timestamp"][:13]) for row in ingest.rows} == {("h1", "2023-12-31T23")}


def test_a_token_is_sent_and_a_refused_one_is_explained(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_TOKEN", "secret")
    ingest.meddle = lambda number, key, body: (401, {}, {"detail": "send the header"})
    result = send(write(lines(1, 3)))
    assert result.exit_code == 1
    assert "LOGPIPE_TOKEN" in result.stderr
    assert "secret" not in result.stderr
    assert ingest.tokens == {"Bearer secret"}
    assert len(ingest.requests) == 1


def test_options_that_make_no_sense(ingest: Ingest) -> None:
    write("what\nis\nthis\n")
    for args, reason in (
        ((), "none of the first 3 lines"),
        (("--timezone", "Mars/Base"), "unknown time zone"),
        (("--pattern", "(?P<a>.*)"), "timestamp"),
        (("--pattern", "(?P<timestamp>.*)", "--format", "syslog"), "exclude each other"),
        (("--time-format", "%Y"), "goes with --pattern"),
    ):
        result = send("app.log", *args)
        assert result.exit_code == 1
        assert reason in result.stderr
    assert send("-", "--resume").exit_code == 1
    assert not ingest.requests


def test_an_empty_file_is_no_failure(ingest: Ingest) -> None:
    assert send(write("")).exit_code == 0
    assert send(write("\n \n")).exit_code == 0
    assert not ingest.requests


def test_the_years_of_a_syslog_file(ingest: Ingest) -> None:
    write("Dec 31 23:59:59 h a: old\nJan  1 00:00:01 h a: new\n")
    os.utime("app.log", (1_700_000_000, 1_700_000_000))  # November 2023
    assert send("app.log").exit_code == 0
    assert [row["timestamp"] for row in ingest.rows] == ["2022-12-31T23:59:59Z", "2023-01-01T00:00:01Z"]
    ingest.stored.clear()
    assert send("app.log", "--year", "2005").exit_code == 0
    assert [row["timestamp"][:4] for row in ingest.rows] == ["2005", "2006"]


def syslog(moment: str, message: str) -> str:
    return f"{moment} h a: {message}\n"


def years(ingest: Ingest) -> dict[str, str]:
    return {row["message"]: row["timestamp"][:10] for row in ingest.rows}


def touched(year: int, month: int, day: int) -> None:
    moment = datetime(year, month, day, 12, tzinfo=UTC).timestamp()
    os.utime("app.log", (moment, moment))


def test_a_resumed_file_keeps_the_year_of_its_first_run_whatever_its_own_time_says(ingest: Ingest) -> None:
    text = write(syslog("Nov 26 12:00:00", "first")) and Path("app.log").read_text()
    touched(2026, 11, 26)
    send("app.log")
    for moment, message, mtime in (
        ("Nov 26 13:00:00", "restored", (2025, 11, 30)),
        ("Nov 27 13:00:00", "copied", (2027, 1, 3)),
        ("Jan  2 00:00:00", "after New Year's Eve", (2026, 1, 3)),
        ("Dec 30 00:00:00", "a year after the first run", (2030, 1, 1)),
        ("Jan  1 00:00:00", "after another New Year's Eve", (2020, 1, 1)),
    ):
        text += syslog(moment, message)
        write(text)
        touched(*mtime)
        result = send("app.log", "--resume")
        assert result.exit_code == 0, result.stderr
        assert "times without a year go on from 20" in result.stderr
    assert years(ingest) == {
        "first": "2026-11-26",
        "restored": "2026-11-26",
        "copied": "2026-11-27",
        "after New Year's Eve": "2027-01-02",
        "a year after the first run": "2027-12-30",
        "after another New Year's Eve": "2028-01-01",
    }


def test_a_chunk_under_way_is_sent_again_with_its_years_after_the_file_has_grown_past_new_year(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPIPE_SEND_PATIENCE", "0")
    ingest.meddle = lambda number, key, body: "drop"
    old = "".join(syslog(f"Dec 31 23:59:{n:02}", f"old{n:02}") for n in range(14))
    write(syslog("Feb  3 00:00:00", "oldest") + old)
    touched(2026, 12, 31)
    assert send("app.log").exit_code == 1
    ingest.meddle = lambda number, key, body: None
    new = "".join(syslog(f"Jan  1 00:00:{n:02}", f"new{n:02}") for n in range(14))
    write(syslog("Feb  3 00:00:00", "oldest") + old + new)
    touched(2027, 1, 1)
    result = send("app.log", "--resume")
    assert result.exit_code == 0, result.stderr
    assert len(ingest.requests) > len(ingest.stored)  # the same bodies under the same keys
    assert years(ingest) == {
        "oldest": "2026-02-03",
        **{f"old{n:02}": "2026-12-31" for n in range(14)},
        **{f"new{n:02}": "2027-01-01" for n in range(14)},
    }


def test_a_pipe_that_flows_past_new_year_goes_on_in_the_new_year() -> None:
    days = ((2026, 12, 30), (2027, 1, 3), (2027, 12, 30))
    moments = [datetime(*day, tzinfo=UTC) for day in days]
    clock = [moments[0]]

    def make(window: Window) -> TextParser:
        return TextParser(FORMATS["syslog"], UTC, window, Defaults())

    parser_at = of_pipe(make, lambda: clock[0])
    for clock[0] in moments:
        row = json.loads(parser_at(0).row(f"{clock[0]:%b %d} 00:00:00 h a: x"))
        assert row["timestamp"] == f"{clock[0]:%Y-%m-%d}T00:00:00Z"


def journal() -> Path:
    (file,) = Path("state").glob("*.progress")
    return file


def test_a_resume_is_refused_after_the_pipeline_was_wiped(ingest: Ingest) -> None:
    send(write(lines(1, 30)))
    ingest.ledger, ingest.stored, asked = str(uuid4()), {}, len(ingest.requests)
    kept = journal().read_bytes()
    write(lines(1, 40))
    result = send("app.log", "--resume")
    assert result.exit_code == 1
    assert "the pipeline was wiped" in result.stderr
    assert "run without --resume to send the whole file" in result.stderr
    assert len(ingest.requests) == asked
    assert journal().read_bytes() == kept
    assert send("app.log").exit_code == 0
    assert ingest.messages == messages(1, 40)


def test_a_ledger_that_changes_under_a_run_stops_it_and_stores_nothing_more(ingest: Ingest) -> None:
    def wiped(number: int, key: str, body: bytes) -> None:
        if number == 3:
            ingest.ledger, ingest.stored = str(uuid4()), {}

    ingest.meddle = wiped
    result = send(write(lines(1, 95)))
    assert result.exit_code == 1
    assert "wiped while this ran" in result.stderr
    assert "go on with" not in result.stderr
    assert not ingest.stored
    assert send("app.log", "--resume").exit_code == 1
    assert not ingest.stored


def restore(ingest: Ingest, backup: dict[str, bytes]) -> None:
    """Ingest has what it had when `backup` was copied from it, in a ledger with a new id."""
    assert ingest.ledger
    ingest.former.append(ingest.ledger)
    ingest.ledger, ingest.stored = str(uuid4()), dict(backup)


def test_what_a_restored_ledger_has_lost_is_sent_again_and_nothing_else(ingest: Ingest) -> None:
    send(write(lines(1, 35)))  # the last chunk is not full
    write(lines(1, 58))
    send("app.log", "--resume")
    backup = ingest.stored.copy()
    write(lines(1, 95))
    send("app.log", "--resume")
    assert len(backup) < len(ingest.stored)
    whole = ingest.stored.copy()
    restore(ingest, backup)
    write(lines(1, 110))
    result = send("app.log", "--resume")
    assert result.exit_code == 0, result.output
    assert "the ledger was restored from a backup" in result.stderr
    assert ingest.messages == messages(1, 110)
    assert whole.items() <= ingest.stored.items()  # the same chunks as before
    restore(ingest, backup)  # the same backup once more
    assert send("app.log", "--resume").exit_code == 0
    assert ingest.messages == messages(1, 110)
    write(lines(1, 120))
    assert "restored" not in send("app.log", "--resume").stderr
    assert ingest.messages == messages(1, 120)


def test_a_send_that_was_interrupted_before_the_restore_is_completed(ingest: Ingest) -> None:
    backup: dict[str, bytes] = {}

    def stop(number: int, key: str, body: bytes) -> Answer | None:
        if number == 4:
            backup.update(ingest.stored)
        return (400, {}, {"detail": "broken"}) if number == 6 else None

    ingest.meddle = stop
    assert send(write(lines(1, 95))).exit_code == 1
    ingest.meddle = lambda number, key, body: None
    restore(ingest, backup)
    assert send("app.log", "--resume").exit_code == 0
    assert ingest.messages == messages(1, 95)


@pytest.mark.parametrize("fields", [{"started": "2026-01-01T00:00:00Z"}, {"started": None}, {"seams": None}])
def test_a_run_whose_keys_may_be_forgotten_is_not_sent_again(ingest: Ingest, fields: dict[str, object]) -> None:
    send(write(lines(1, 30)))
    changed(journal(), **fields)
    kept = journal().read_bytes()
    restore(ingest, {})
    result = send("app.log", "--resume")
    assert result.exit_code == 1
    assert "ingest cannot tell any more which of its rows the backup has" in " ".join(result.stderr.split())
    assert not ingest.stored
    assert journal().read_bytes() == kept


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "no record of an earlier send"),
        (lambda file: file.write_bytes(b""), "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-20]), "is damaged"),
        (lambda file: file.write_bytes(b"\xff\x00\x80"), "is damaged"),
        (lambda file: file.write_bytes(b"null"), "is damaged"),
        (lambda file: changed(file, version=4), "newer release"),
        (lambda file: changed(file, path="/other.log"), "the record of another file"),
    ],
    ids=["lost", "empty", "cut", "binary", "null", "newer", "another file's"],
)
def test_a_journal_that_tells_nothing_for_certain_refuses_the_resume(
    ingest: Ingest, damage: Callable[[Path], object], message: str
) -> None:
    send(write(lines(1, 30)))
    asked = len(ingest.requests)
    damage(journal())
    write(lines(1, 40))
    result = send("app.log", "--resume")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "run without --resume to send the whole file" in result.stderr
    assert len(ingest.requests) == asked
    assert send("app.log").exit_code == 0
    assert len(ingest.rows) == 70


def changed(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_bytes()) | fields))


def test_a_journal_of_the_last_release_is_bound_once(ingest: Ingest) -> None:
    send(write(lines(1, 30)))
    kept = json.loads(journal().read_bytes())
    journal().write_text(json.dumps({name: kept[name] for name in ("path", "run", "options", "done", "begun")}))
    write(lines(1, 40))
    result = send("app.log", "--resume")
    assert result.exit_code == 0
    assert "is bound to the one that ingest writes to now" in result.stderr
    assert ingest.messages == messages(1, 40)
    ingest.ledger = str(uuid4())
    write(lines(1, 50))
    assert send("app.log", "--resume").exit_code == 1
    assert ingest.messages == messages(1, 40)


def test_an_ingest_api_of_the_last_release_names_no_ledger(ingest: Ingest) -> None:
    ingest.ledger = None
    assert send(write(lines(1, 30))).exit_code == 0
    ingest.ledger = str(uuid4())
    write(lines(1, 40))
    assert send("app.log", "--resume").exit_code == 0
    ingest.ledger = None
    write(lines(1, 50))
    result = send("app.log", "--resume")
    assert result.exit_code == 1
    assert "update it, then resume" in result.stderr
    assert ingest.messages == messages(1, 40)


def test_an_ingest_api_that_has_not_read_its_ledgers_id_is_waited_for(ingest: Ingest) -> None:
    ledger, ingest.ledger = ingest.ledger, ""

    def read() -> None:
        until(lambda: ingest.looks > 1)
        ingest.ledger = ledger

    reading = threading.Thread(target=read)
    reading.start()
    assert send(write(lines(1, 30))).exit_code == 0
    reading.join()
    assert json.loads(journal().read_bytes())["ledger"] == ledger


def test_the_journal_is_on_disk_before_it_replaces_the_old_one(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.rpartition(".")[2])
        fsync(descriptor)

    def noted_replace(draft: Path, target: Path) -> Path:
        synced.append("replaced")
        return replace(draft, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    send(write(lines(1, 3)))
    assert synced
    assert synced == ["draft", "replaced", "state"] * (len(synced) // 3)


def command(*args: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "services", "send", *args],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        **options,
    )


def test_a_live_pipe_is_sent_as_it_comes(ingest: Ingest) -> None:
    process = command("-", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(lines(1, 3).encode() + b"2024-01-01 00:00:00,000 INFO a.B: ")
    process.stdin.flush()
    until(lambda: ingest.messages == messages(1, 3))  # though the pipe is still open, and a line half written
    process.stdin.write(b"m0004\n" + lines(5, 5).encode().rstrip())
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert ingest.messages == messages(1, 5)


def test_a_trace_at_the_end_of_a_live_pipe(ingest: Ingest) -> None:
    process = command("-", "--format", "log4j", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(f"{lines(1, 1)}{PYTHON}\n".encode())
    process.stdin.flush()
    until(lambda: ingest.messages == [f"m0001\n{PYTHON}"])  # sent in the silence, though more of it might come
    process.stdin.write(f"{lines(2, 2)}{PYTHON}".encode())
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert ingest.messages == [f"m0001\n{PYTHON}", f"m0002\n{PYTHON}"]


def test_a_second_of_a_live_pipe_does_not_end_a_record() -> None:
    """None: a second has passed, whether lines came in it or not."""
    first, second, third = (line.encode() + b"\n" for line in lines(1, 3).splitlines())

    class Pipe:
        count = line_start = 0

        def lines(self, cuts: list[int]) -> Iterator[bytes | None]:
            for line in (first, second, None, b"\tat 1\n", None, b"\tat 2\n", None, None, third, None, None):
                self.count += line is not None
                yield line

        def mark(self) -> Mark:
            return Mark(self.count)

        def offset(self) -> int:
            return 0

    text = TextParser(FORMATS["log4j"], UTC, Window(), Defaults(), "s")
    chunks = list(Chunker(cast(Source, Pipe()), lambda offset: text, RowCodec(find("logs")), rows=10).chunks())
    assert [(chunk.first, chunk.lines, len(chunk.rows)) for chunk in chunks] == [(1, 4, 2), (5, 1, 1)]
    assert json.loads(chunks[0].rows[1])["message"] == "m0002\n\tat 1\n\tat 2"


def test_a_compressed_pipe(ingest: Ingest) -> None:
    process = command("-", stdin=subprocess.PIPE)
    _, err = process.communicate(gzip.compress(lines(1, 200).encode()), timeout=60)
    assert process.returncode == 0, err
    assert ingest.messages == messages(1, 200)


def test_an_interrupt_leaves_it_resumable(ingest: Ingest) -> None:
    held = threading.Event()

    def hold(number: int, key: str, body: bytes) -> None:
        if number > 3:
            held.wait(60)

    ingest.meddle = hold
    process = command(write(lines(1, 95)))
    until(lambda: len(ingest.requests) >= 6)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    held.set()
    assert process.returncode == 130
    assert b"logpipe send --resume app.log" in err
    assert send("app.log", "--resume").exit_code == 0
    assert ingest.messages == messages(1, 95)


def test_two_sends_of_one_file_at_once_are_refused(ingest: Ingest) -> None:
    held = threading.Event()

    def hold(number: int, key: str, body: bytes) -> None:
        held.wait(60)

    ingest.meddle = hold
    process = command(write(lines(1, 5)))
    until(lambda: len(ingest.requests) == 1)
    result = send("app.log", "--resume")
    held.set()
    process.communicate(timeout=60)
    assert result.exit_code == 1
    assert "another `logpipe send` of app.log is running" in result.stderr
    assert process.returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_each_kind_arrives_whole(ingest: Ingest, name: str) -> None:
    made = samples(name)
    result = send(write("".join(f"{sample.line}\n" for sample in made)))
    assert result.exit_code == 0, result.stderr
    assert (figure(result, "lines read"), figure(result, "rows acked")) == (LINES, LINES)
    assert sorted(row["message"] for row in ingest.rows) == sorted(sample.fields["Content"] for sample in made)
