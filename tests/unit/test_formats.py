"""Every format on its own samples, and four formats on whole files, of which every line's fields are known."""

import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from time import process_time
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.core.errors import Invalid
from services.core.rows import RowCodec
from services.datasets import find
from services.send.formats import FORMATS, ISO, Format
from services.send.levels import LEVELS
from services.send.parse import Defaults, NdjsonParser, TextParser, Unparsed, custom, detect
from services.send.times import TimeParser, Window
from services.send.years import decided
from tests.log_samples import LINES, samples

NOW = datetime(2024, 3, 10, 12, tzinfo=UTC)
CODEC = RowCodec(find("logs"))


def parser(form: str | Format, until: datetime = NOW, **defaults: str) -> TextParser:
    form = FORMATS[form] if isinstance(form, str) else form
    return TextParser(form, UTC, Window(until=until), Defaults(**defaults), "stem")


def row(form: str | Format, line: str, **defaults: str) -> dict[str, Any]:
    encoded = parser(form, NOW, **defaults).row(line)
    assert CODEC.decode_lines(encoded).count == 1
    found: dict[str, Any] = json.loads(encoded)
    return found


@pytest.mark.parametrize(("name", "line"), [(f.name, line) for f in FORMATS.values() for line in f.samples])
def test_a_sample_parses_and_is_recognised_as_its_own_format(name: str, line: str) -> None:
    assert row(name, line)["service"]
    assert detect([line], UTC, NOW) == (name, 1)


def test_all_formats_have_samples() -> None:
    assert [f.name for f in FORMATS.values() if not f.samples] == []


def test_no_sample_continues_another() -> None:
    assert [line for f in FORMATS.values() for line in f.samples if parser(f).continues(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "\tat org.apache.hadoop.ipc.Client.call(Client.java:1480)",
        "\t... 12 more",
        "at app.js:10:5",
        "Caused by: java.net.ConnectException: Connection refused",
        "Suppressed: java.io.IOException: closed",
        "java.lang.RuntimeException: failed",
        'Exception in thread "main" java.lang.Error',
        "Traceback (most recent call last):",
        '  File "app.py", line 3, in main',
        "ValueError: no such day",
        "During handling of the above exception, another exception occurred:",
    ],
)
def test_a_line_of_a_stack_trace_continues_a_record_of_any_format(line: str) -> None:
    assert [name for name in FORMATS if not parser(name).continues(line)] == []
    assert row("syslog", "Dec  1 06:55:46 h a: m")["message"] == "m"
    assert not NdjsonParser(Defaults()).continues(line)


def test_where_records_begin_with_a_time_all_else_continues_them() -> None:
    for name, line, expected in (
        ("log4j", "SELECT *", True),
        ("log4j", "2024-02-31 00:00:00,000 INFO a.B: no such day", False),  # a record, though a wrong one
        ("log4j", "2024-02-03 00:00:00,000 neither level nor logger", False),
        ("log4j", "2024-02-03 | orders | 17", True),
        ("log4j", "24/02/03 | orders", True),
        ("log4j", "03-Feb-2024 | orders", True),
        ("log4j", "INFO [or so]", True),
        ("log4j", "INFO  [main] 2024-02-03 00:00:00,000 no line number", False),
        ("openstack", "2024-02-03 | orders | 17", True),
        ("openstack", "SELECT *", True),
        ("klog", "goroutine 1 [running]:", True),
        ("common", "garbage", False),
        ("syslog", "garbage", False),
    ):
        assert parser(name).continues(line) is expected, (name, line)
    own = custom(r" *(?P<timestamp>\S+) (?P<message>.*)", ISO)
    assert not parser(own).continues("  2024-01-01T00:00:00 indented, but a record")
    assert parser(own).continues("  indented")


def test_what_continues_a_record_is_added_to_its_message() -> None:
    found = json.loads(parser("log4j").row("2015-10-18 18:01:47,978 ERROR a.B: failed", "\n\tat a.B\n... 1 more"))
    assert found["message"] == "failed\n\tat a.B\n... 1 more"


def test_combined() -> None:
    line = r'10.0.0.1 - bob [10/Oct/2000:13:55:36 -0700] "GET /\"a\" HTTP/1.0" 503 2326 "http://r/" "curl \"8\""'
    assert row("combined", line) == {
        "timestamp": "2000-10-10T20:55:36Z",
        "level": "ERROR",
        "service": "http",
        "host": "10.0.0.1",
        "message": r"GET /\"a\" HTTP/1.0",
        "metadata": {
            "user": "bob",
            "status": 503,
            "bytes": 2326,
            "referer": "http://r/",
            "agent": r"curl \"8\"",
        },
    }


@pytest.mark.parametrize(("status", "level"), [("200", "INFO"), ("301", "INFO"), ("404", "WARN"), ("500", "ERROR")])
def test_the_level_of_an_access_log_is_its_status(status: str, level: str) -> None:
    found = row("common", f'h - - [10/Oct/2000:13:55:36 +0000] "GET / HTTP/1.0" {status} -')
    assert found["level"] == level
    assert found["metadata"] == {"status": int(status)}


def test_apache_error_keeps_the_client_in_the_message_and_as_host() -> None:
    line = "[Fri Sep 09 10:42:29.902022 2011] [core:crit] [pid 35:tid 43] (2)Oops: [client 10.1.9.7:51] AH35: no"
    found = row("apache-error", line)
    assert found["timestamp"] == "2011-09-09T10:42:29.902022Z"
    assert found["host"] == "10.1.9.7"
    assert found["message"] == "(2)Oops: [client 10.1.9.7:51] AH35: no"
    assert found["level"] == "ERROR"
    assert found["metadata"] == {"module": "core", "pid": 35, "tid": 43, "port": 51, "level": "crit"}


@pytest.mark.parametrize(
    ("line", "service", "pid", "message"),
    [
        ("Dec  1 06:55:46 h sshd[24]: Invalid user: x", "sshd", 24, "Invalid user: x"),
        ("Dec  1 06:55:46 h su(pam_unix)[9]: session opened", "su(pam_unix)", 9, "session opened"),
        ("Dec  1 06:55:46 h kernel: [12.3] usb 1-1: new", "kernel", None, "[12.3] usb 1-1: new"),
        ("Dec  1 06:55:46 h Google Chrome[77]: x", "Google Chrome", 77, "x"),
        ("Dec  1 06:55:46 h  -- root[2421]: ROOT LOGIN ON tty2", "-- root", 2421, "ROOT LOGIN ON tty2"),
        ("Dec  1 06:55:46 h last message repeated 2 times", "syslog", None, "last message repeated 2 times"),
        ("Dec  1 06:55:46 h cron[1]:", "cron", 1, ""),
    ],
)
def test_syslog_tags(line: str, service: str, pid: int | None, message: str) -> None:
    found = row("syslog", line)
    assert (found["service"], found["metadata"].get("pid"), found["message"]) == (service, pid, message)
    assert (found["host"], found["level"]) == ("h", "INFO")


def test_syslog_priority_gives_the_level() -> None:
    levels = [row("syslog", f"<{pri}>Dec  1 06:55:46 h a: m")["level"] for pri in range(8, 16)]
    assert levels == ["ERROR"] * 4 + ["WARN", "INFO", "INFO", "DEBUG"]


def test_rfc_5424() -> None:
    found = row("syslog", r'<165>1 2003-10-11T22:14:15.000003-07:00 h app 8710 ID47 [x@1 a="b\]"][y@2] text')
    assert found["timestamp"] == "2003-10-12T05:14:15.000003Z"
    assert found["metadata"] == {
        "pri": 165,
        "pid": 8710,
        "message_id": "ID47",
        "structured_data": r'[x@1 a="b\]"][y@2]',
    }
    with pytest.raises(Unparsed, match="'-' is not a time"):
        parser("syslog").row("<165>1 - h app 8710 ID47 - text")


def test_log4j_threads_and_levels() -> None:
    found = row("log4j", "2015-07-29 17:41:44,747 - WARN  [Q[myid=1]/0:0:2181:FastLeaderElection@774] - timed out")
    assert (found["service"], found["level"], found["message"]) == ("FastLeaderElection", "WARN", "timed out")
    assert found["metadata"] == {"thread": "Q[myid=1]/0:0:2181", "line": 774}
    found = row("log4j", "2015-10-18 18:01:47,978 FATAL [Socket Reader #1 for port 62260] o.a.Server: x: y")
    assert (found["service"], found["level"], found["message"]) == ("o.a.Server", "ERROR", "x: y")
    assert found["metadata"] == {"thread": "Socket Reader #1 for port 62260", "level": "FATAL"}


@pytest.mark.parametrize(
    ("line", "host", "vhost", "user"),
    [
        ("shop.example.org:443 203.0.113.7 - - ", "203.0.113.7", "shop.example.org:443", None),
        ("blog.example.org:80 2001:db8::17 - alice ", "2001:db8::17", "blog.example.org:80", "alice"),
        ("shop.example.org 203.0.113.7 - - ", "203.0.113.7", "shop.example.org", None),
        ("shop.example.org:443 client.example.net - - ", "client.example.net", "shop.example.org:443", None),
        ("2001:db8::17 - alice smith ", "2001:db8::17", None, "alice smith"),
        ("203.0.113.7 ident alice ", "203.0.113.7", None, "alice"),
    ],
)
@pytest.mark.parametrize(("name", "end"), [("combined", ' "-" "agent"'), ("common", "")])
def test_the_virtual_host_in_front_is_not_the_client(
    name: str, end: str, line: str, host: str, vhost: str | None, user: str | None
) -> None:
    found = row(name, f'{line}[01/May/2024:12:00:00 +0000] "GET / HTTP/1.1" 200 512{end}')
    assert (found["host"], found["metadata"].get("vhost"), found["metadata"].get("user")) == (host, vhost, user)
    assert found["message"] == "GET / HTTP/1.1"


def test_quotes_that_should_have_been_escaped() -> None:
    start = "203.0.113.9 - - [01/May/2024:12:00:00 +0000]"
    traefik = ' 7 "web@docker" "http://192.0.2.1:3001" 2ms'
    found = row("combined", f'{start} "GET /"x" HTTP/1.1" 200 612 "http://r/"q"" "my " agent"{traefik}')
    assert found["message"] == 'GET /"x" HTTP/1.1'
    assert found["metadata"]["referer"] == 'http://r/"q"'
    assert found["metadata"]["agent"] == 'my " agent'
    assert found["metadata"]["extra"] == traefik.strip()
    plain = row("combined", f'{start} "GET / HTTP/1.1" 200 612 "-" "agent" 7 un"closed')["metadata"]
    assert (plain["agent"], plain["extra"]) == ("agent", '7 un"closed')


@pytest.mark.parametrize(
    ("client", "host", "port"),
    [
        ("2001:db8::17", "2001:db8::17", None),
        ("::1:53512", "::1", 53512),
        ("2001:db8:0:0:0:0:0:17:443", "2001:db8:0:0:0:0:0:17", 443),
        ("10.1.9.7:51", "10.1.9.7", 51),
        ("a.example", "a.example", None),
    ],
)
def test_the_client_of_an_apache_error(client: str, host: str, port: int | None) -> None:
    line = f"[Wed May 01 12:00:00.000001 2024] [security2:error] [pid 7:tid 43] [client {client}] Warning."
    found = row("apache-error", line)
    assert (found["host"], found["metadata"].get("port")) == (host, port)


def test_klog_with_the_year_in_the_line() -> None:
    found = row("klog", "W20240501 12:00:01.000001 400441 server.cc:63] slow request: 2100 ms")
    assert (found["timestamp"], found["level"]) == ("2024-05-01T12:00:01.000001Z", "WARN")
    assert parser("klog").continues("*** Check failure stack trace: ***")
    assert not parser("klog").continues("W20240501 12:00:01.000001 no more of it")


@pytest.mark.parametrize(
    ("line", "service", "pid", "message"),
    [
        ("<30>May  1 12:00:00 chronyd[1119]: clock was stepped", "chronyd", 1119, "clock was stepped"),
        ("<86>May  1 12:00:01 su: refused for carol on /dev/pts/8", "su", None, "refused for carol on /dev/pts/8"),
        ("<30>May  1 12:00:02 kernel: usb 1-1: new, status: ok", "kernel", None, "usb 1-1: new, status: ok"),
    ],
)
def test_syslog_without_a_host(line: str, service: str, pid: int | None, message: str) -> None:
    found = row("syslog", line)
    assert (found["host"], found["service"], found["metadata"].get("pid")) == ("", service, pid)
    assert found["message"] == message
    assert detect([line], UTC, NOW) == ("syslog", 1)


def test_a_cisco_host_with_a_colon_is_a_host() -> None:
    for line in ("<189>Oct  1 2023 12:00:00 fw01 : %ASA-5-1: done", "<189>Oct  1 2023 12:00:00 fw01: %ASA-5-1: done"):
        assert (row("syslog", line)["host"], row("syslog", line)["service"]) == ("fw01", "%ASA-5-1")


@pytest.mark.parametrize("count", ["", "114 "])
@pytest.mark.parametrize(
    ("line", "service", "pid", "message"),
    [
        ('<13>1 2024-05-01T12:00:00Z h billing - - [q tz="1"] run begun', "billing", None, "run begun"),
        ("<40>1 2024-05-01T12:00:00Z h app web.3 - Dyno web.3 is up", "app", "web.3", "Dyno web.3 is up"),
        ('<45>1 2024-05-01T12:00:00Z h heroku router - at=info path="/"', "heroku", "router", 'at=info path="/"'),
        ("<45>1 2024-05-01T12:00:00Z h app web - - - dashes", "app", "web", "- dashes"),
    ],
)
def test_rfc_5424_with_a_count_in_front_and_without_structured_data(
    count: str, line: str, service: str, pid: str | None, message: str
) -> None:
    found = row("syslog", count + line)
    assert (found["host"], found["service"], found["message"]) == ("h", service, message)
    assert found["metadata"].get("pid") == pid


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        ("2024-05-01T12:00:00.000Z [info]: started", "INFO", "started"),
        ("2024-05-01T12:00:01.000Z [error]: could not connect: refused", "ERROR", "could not connect: refused"),
        ("2024-05-01 12:00:01 [warn] slow", "WARN", "slow"),
        ("2024-05-01T12:00:01.000Z debug: x", "DEBUG", "x"),
    ],
)
def test_a_level_after_an_iso_time_is_no_host(line: str, level: str, message: str) -> None:
    assert detect([line], UTC, NOW) == ("log4j", 1)
    found = row("log4j", line)
    assert (found["level"], found["host"], found["message"]) == (level, "", message)
    with pytest.raises(Unparsed):
        parser("syslog").row("2024-05-01T12:00:00.000Z [info]: started")


@pytest.mark.parametrize(
    "lines",
    [
        ["2024-05-01T12:00:00Z server started"],
        ["2024-05-01T12:00:00Z Error connecting: refused"],
        ["2024-05-01T12:00:00Z Error connecting: refused", "2024-05-01T12:00:01Z Retrying soon: 5 s"],
        ["2024-05-01T12:00:00+02:00 42 items: ok", "2024-05-01T12:00:00+02:00 43 items: ok"],
        ["May  1 12:00:00 something happened", "May  1 12:00:01 something else happened"],
        ["May  1 12:00:00 Error connecting: refused", "May  1 12:00:00 Stopping workers: 3 left"],
        ["2024-05-01 12:00:00, Some text that goes on"],
    ],
)
def test_lines_that_only_begin_with_a_time_are_of_no_known_format(lines: list[str]) -> None:
    assert detect(lines, UTC, NOW) == ("", 0)


def test_syslog_is_known_by_its_hosts_and_process_ids() -> None:
    kernel = [f"2024-05-01T12:00:0{n}.1+02:00 host kernel: usb {n}" for n in range(3)]
    assert detect(kernel, UTC, NOW) == ("syslog", 3)
    assert detect(["2024-05-01T12:00:00+02:00 host cron[7]: run"], UTC, NOW) == ("syslog", 1)
    repeated = ["May  1 12:00:00 h last message repeated 2 times", "May  1 12:00:00 h sshd[4]: closed"]
    assert detect(repeated, UTC, NOW) == ("syslog", 2)


def test_json_lines_are_rows_only_when_ingest_would_take_them() -> None:
    own = '{"timestamp":"2024-05-01T12:00:00Z","level":"INFO","service":"s"}'
    assert detect([own], UTC, NOW) == ("ndjson", 1)
    assert detect(['{"ts":1714564800,"msg":"x"}', '{"level":"INFO"}'], UTC, NOW) == ("", 0)
    assert detect(['{"timestamp":"2024-05-01T12:00:00Z","level":"INFO"}'], UTC, NOW) == ("", 0)
    assert detect(['{"timestamp":"2024-05-01T12:00:00Z"}'], UTC, NOW, Defaults("INFO", "s", "")) == ("ndjson", 1)
    assert detect(['{"log":"x\\n","stream":"stdout","time":"2024-05-01T12:00:00.1Z"}'], UTC, NOW) == ("docker", 1)


HOSTILE = (
    "[",
    "] ",
    "[a",
    " [a",
    "(",
    " (",
    "[client ",
    "[client a:1",
    ", client: ",
    " ",
    ": ",
    ":1",
    " -",
    '"',
    '\\"',
    "[x]",
    "a:b@1 ",
    '" "',
    ' "a"',
    '" 200 5 "',
    "::1",
)


@pytest.mark.parametrize("name", FORMATS)
def test_no_line_takes_long(name: str) -> None:
    chosen = parser(name)
    for sample in FORMATS[name].samples:
        for end in {len(sample), len(sample) // 2, sample.find("]") + 2, sample.find(": ") + 2}:
            for piece in HOSTILE:
                line = sample[:end] + piece * (20_000 // len(piece))
                started = process_time()
                chosen.continues(line)
                with suppress(Unparsed):
                    chosen.row(line)
                assert process_time() - started < 0.5, line[:200]


@pytest.mark.parametrize("name", FORMATS)
def test_no_line_with_a_long_run_takes_long(name: str) -> None:
    chosen = parser(name)
    for sample in FORMATS[name].samples:
        starts = [found.start() for found in re.finditer(r"\b", sample)]
        for at in {0, len(sample), *starts[:: len(starts) // 10 + 1]}:
            for character in ' [":(':
                for end in (sample[at:], "x"):
                    line = sample[:at] + character * 20_000 + end
                    started = process_time()
                    chosen.continues(line)
                    with suppress(Unparsed):
                        chosen.row(line)
                    assert process_time() - started < 0.5, (sample[:at], character, end)


def test_detecting_the_format_of_a_long_line_does_not_take_long() -> None:
    started = process_time()
    assert detect(["[2015-10-18 18:01:47,978] INFO" + " " * 20_000 + "x"], UTC, NOW) == ("log4j", 1)
    assert detect(["a.example " + ":" * 20_000 + "x"], UTC, NOW) == ("", 0)
    assert process_time() - started < 1


@pytest.mark.parametrize(
    ("blanks", "message", "service"),
    [
        (" ", "started (now)", "kafka.Server"),
        ("   ", "started (now) ", "kafka.Server"),
        (" ", "", "kafka.Server"),
        ("  ", "", "kafka.Server"),
    ],
)
def test_a_line_of_kafka_may_have_no_message(blanks: str, message: str, service: str) -> None:
    found = row("log4j", f"[2015-10-18 18:01:47,978] INFO{blanks}{message} ({service})")
    assert (found["message"], found["service"]) == (message, service)


def test_every_level_word_has_one_meaning() -> None:
    words = [word for words in LEVELS.values() for word in words]
    assert len(words) == len(set(words))


def test_defaults_fill_only_what_is_missing() -> None:
    line = "2015-10-18 18:01:47,978 [WARN] no logger named"
    assert row("log4j", line)["service"] == "stem"
    found = row("log4j", line, service="s", host="h", level="DEBUG")
    assert (found["service"], found["host"], found["level"]) == ("s", "h", "WARN")


def test_a_custom_pattern() -> None:
    form = custom(
        r"\[(?P<timestamp>\d\d\.\d\d \d\d:\d\d:\d\d)\] (?P<service>\S+) - (?P<peer>\S+) (?P<message>.*)",
        "%m.%d %H:%M:%S",
    )
    found = row(form, "[10.30 16:49:06] chrome.exe - proxy:5070 open through proxy")
    assert found["timestamp"] == "2023-10-30T16:49:06Z"
    assert found["metadata"] == {"peer": "proxy:5070"}
    with pytest.raises(Unparsed, match="does not match"):
        parser(form).row("something else")
    with pytest.raises(Invalid, match="timestamp"):
        custom("(?P<message>.*)", ISO)
    with pytest.raises(Invalid, match="not a regular expression"):
        custom("(?P<timestamp>", ISO)


def test_ndjson_defaults_leave_the_other_bytes_alone() -> None:
    line = '{"timestamp":"2024-01-01T00:00:00Z","level":"X","metadata":{"a":1e2,"a":-0.0}}'
    assert NdjsonParser(Defaults()).row(line) == line.encode()
    filled = NdjsonParser(Defaults(service="s", level="INFO")).row(line)
    assert b'"metadata":{"a":1e2,"a":-0.0}' in filled
    assert json.loads(filled)["service"] == "s"
    assert json.loads(filled)["level"] == "X"


@pytest.mark.parametrize(
    ("time_format", "text", "expected"),
    [
        (ISO, "2015-10-18 18:01:47,978", "2015-10-18T18:01:47.978Z"),
        (ISO, "2015-10-18T18:01:47.123456789+05:30", "2015-10-18T12:31:47.123456Z"),
        (ISO, "2015-10-18T18:01:47Z", "2015-10-18T18:01:47Z"),
        ("%Y%m%d-%H:%M:%S:%f", "20171223-22:15:29:606", "2017-12-23T22:15:29.606Z"),
        ("%Y-%m-%d-%H.%M.%S.%f", "2005-06-03-15.42.50.675872", "2005-06-03T15:42:50.675872Z"),
        ("%a %b %d %H:%M:%S.%f %Y", "Sun Dec 04 04:47:44 2005", "2005-12-04T04:47:44Z"),
        ("%s", "1077804742", "2004-02-26T14:12:22Z"),
        ("%s.%f", "1077804742.25", "2004-02-26T14:12:22.250000Z"),
        ("%s", "1077804742123", "2004-02-26T14:12:22.123000Z"),
        ("%s", "1077804742123456789", "2004-02-26T14:12:22.123456Z"),
        ("%s.%f", "1077804742123.5", "2004-02-26T14:12:22.123500Z"),
        (ISO, "2016-12-31 23:59:60,000", "2016-12-31T23:59:59.999999Z"),
        ("%d/%b/%Y:%H:%M:%S %z", "31/Dec/2016:15:59:60 -0800", "2016-12-31T23:59:59.999999Z"),
        ("%a %b %d %H:%M:%S.%f %Y", "Sat Dec 31 23:59:60.25 2016", "2016-12-31T23:59:59.999999Z"),
    ],
)
def test_times(time_format: str, text: str, expected: str) -> None:
    times = TimeParser(time_format, UTC, Window())
    assert [times.wire(text), times.wire(text)] == [expected, expected]


@pytest.mark.parametrize("text", ["", "yesterday", "2015-13-01 00:00:00", "2015-02-29 00:00:00", "2015-10-18 25:00:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        TimeParser(ISO, UTC, Window()).wire(text)


@pytest.mark.parametrize("time_format", [ISO, "%a %b %d %H:%M:%S.%f %Y", "%Y-%m-%d %H:%M:%S", "%s.%f"])
def test_a_text_that_is_longer_than_a_time_is_refused_before_a_pattern_sees_it(time_format: str) -> None:
    """The patterns of fractions take the square of a text's length: this one would keep them busy for hours."""
    with pytest.raises(ValueError, match="a time has at most 100"):
        TimeParser(time_format, UTC, Window()).wire("T" * 1_000_000)


@pytest.mark.parametrize("text", ["2016-12-31 23:59:61", "2016-12-31 12:00:60", "2016-12-30 23:59:60"])
@pytest.mark.parametrize("time_format", [ISO, "%Y-%m-%d %H:%M:%S"])
def test_a_second_60_that_ends_no_month_is_refused(time_format: str, text: str) -> None:
    with pytest.raises(ValueError, match="not a time"):
        TimeParser(time_format, UTC, Window()).wire(text)


def test_a_leap_second_of_a_time_without_a_year_ends_its_day() -> None:
    times = TimeParser("%b %d %H:%M:%S", UTC, Window(until=datetime(2017, 1, 1, 12, tzinfo=UTC)))
    assert times.wire("Dec 31 23:59:60") == "2016-12-31T23:59:59.999999Z"


def test_a_zone_with_summer_time() -> None:
    times = TimeParser(ISO, ZoneInfo("Europe/Berlin"), Window())
    assert times.wire("2024-01-01 12:00:00") == "2024-01-01T11:00:00Z"
    assert times.wire("2024-07-01 12:00:00") == "2024-07-01T10:00:00Z"


def years(lines: list[str], modified: datetime, year: int | None = None, zone: timezone = UTC) -> list[int]:
    form = FORMATS["syslog"]

    def make(within: Window) -> TextParser:
        return TextParser(form, zone, within, Defaults())

    chosen = make(decided(make, lines, lines, 1, year, zone, modified)[0].window)
    return [chosen.time(line).astimezone(zone).year for line in lines]


def syslog(*days: str) -> list[str]:
    return [f"{day} 12:00:00 h a: m" for day in days]


def test_the_year_of_times_without_one() -> None:
    spring = datetime(2024, 3, 10, tzinfo=UTC)
    assert years(syslog("Dec 30", "Dec 31", "Jan  1", "Feb 29"), spring) == [2023, 2023, 2024, 2024]
    assert years(syslog("Mar  9", "Mar 10"), spring) == [2024, 2024]  # later that day, in another zone perhaps
    assert years(syslog("Mar 10", "Mar 12"), spring) == [2023, 2023]
    # The file's last line counts, not the day it was copied: June must not come after December.
    assert years(syslog("Jun 14", "Dec 10", "Feb 25"), datetime(2026, 11, 21, tzinfo=UTC)) == [2025, 2025, 2026]
    assert years(syslog("Feb 29", "Mar  1"), datetime(2023, 1, 1, tzinfo=UTC))[0] == 2020


def test_a_year_given_is_that_of_the_first_line() -> None:
    assert years(syslog("Nov 30", "Dec 31", "Jan  1"), NOW, 2005) == [2005, 2005, 2006]
    assert years(syslog("Jan  1", "Dec 31"), NOW, 2005) == [2005, 2005]
    east = timezone(timedelta(hours=9))
    assert years([line.replace("12:", "00:") for line in syslog("Jan  1", "Dec 31")], NOW, 2005, east) == [2005, 2005]


def parsed(name: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Return (the fields that the line was put together from, our row) of each line of a file."""
    made = samples(name)
    lines = [sample.line for sample in made]
    form, count = detect(lines[:100], UTC, NOW)
    assert count == 100
    chosen = parser(form, until=datetime(2026, 11, 21, tzinfo=UTC))
    rows = [json.loads(chosen.row(line)) for line in lines]
    assert len(rows) == LINES
    return [(sample.fields, row) for sample, row in zip(made, rows, strict=True)]


def wire(text: str, time_format: str) -> datetime:
    return datetime.strptime(text, time_format).replace(tzinfo=UTC)


def test_apache_sample() -> None:
    levels = {"notice": "INFO", "error": "ERROR"}
    for expected, found in parsed("Apache"):
        assert found["message"] == expected["Content"]
        assert found["level"] == levels[expected["Level"]]
        assert found["metadata"]["level"] == expected["Level"]
        assert datetime.fromisoformat(found["timestamp"]) == wire(expected["Time"], "%a %b %d %H:%M:%S %Y")
        assert found["host"] == (expected["Content"].split("]")[0][8:] if "[client" in expected["Content"] else "")


def test_hdfs_sample() -> None:
    for expected, found in parsed("HDFS"):
        assert found["message"] == expected["Content"]
        assert found["level"] == expected["Level"]
        assert found["service"] == expected["Component"]
        assert found["metadata"] == {"pid": int(expected["Pid"])}
        assert datetime.fromisoformat(found["timestamp"]) == wire(expected["Date"] + expected["Time"], "%y%m%d%H%M%S")


def test_openssh_sample() -> None:
    for expected, found in parsed("OpenSSH"):
        assert found["message"] == expected["Content"]
        assert found["host"] == expected["Component"]
        assert found["service"] == "sshd"
        assert found["metadata"] == {"pid": int(expected["Pid"])}
        text = f"2026 {expected['Date']} {expected['Day']} {expected['Time']}"
        assert datetime.fromisoformat(found["timestamp"]) == wire(text, "%Y %b %d %H:%M:%S")


def test_openstack_sample() -> None:
    levels = {"INFO": "INFO", "WARNING": "WARN", "ERROR": "ERROR"}
    for expected, found in parsed("OpenStack"):
        assert found["message"] == expected["Content"]
        assert found["level"] == levels[expected["Level"]]
        assert found["service"] == expected["Component"]
        metadata = found["metadata"]
        assert metadata["file"] == expected["Logrecord"]
        assert metadata["pid"] == int(expected["Pid"])
        assert metadata.get("context", "-") == expected["ADDR"]
        assert metadata.get("level", found["level"]) == expected["Level"]
        text = f"{expected['Date']} {expected['Time']}"
        assert datetime.fromisoformat(found["timestamp"]) == wire(text, "%Y-%m-%d %H:%M:%S.%f")
