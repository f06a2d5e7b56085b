"""The ingest API on a real PostgreSQL and a real Kafka, over real HTTP: what it accepts, and what it refuses."""

import gzip
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
import zstandard

from services import datasets
from services.core.rows import RowCodec, checksum
from services.stores.postgres import PostgresReader
from services.streams import kafka
from tests.processes import Process, free_port
from tests.waiting import until

LOG: dict[str, Any] = {
    "timestamp": "2026-01-31T12:00:00.123456Z",
    "level": "INFO",
    "service": "auth",
    "host": "worker-1",
    "message": "ok",
    "metadata": {"a": 1},
}
EVENT: dict[str, Any] = {
    "eventId": "0b8f8f0e-5f0a-4e9e-9d0b-3f6f3a1f6c11",
    "timestamp": "2026-01-31T12:00:00Z",
    "userId": "user_1",
    "eventType": "CLICK",
}
MAX_BODY = 4 << 20
NDJSON = "application/x-ndjson"
LINES = b"\n".join(json.dumps({**LOG, "message": f"{n}"}).encode() for n in range(5_000))
BOMB = (LINES + b"\n") * (MAX_BODY // len(LINES) + 1)


@pytest.fixture(scope="module")
def ingest(postgres_url: str, kafka_url: str) -> Iterator[httpx.Client]:
    port = free_port()
    environment = {
        "LOGPIPE_POSTGRES_URL": postgres_url,
        "LOGPIPE_KAFKA_URL": kafka_url,
        "LOGPIPE_INGEST_PORT": str(port),
        "LOGPIPE_INGEST_MAX_BODY": str(MAX_BODY),
        "LOGPIPE_INGEST_DISK_FLOOR": "0",
    }
    with Process("ingest-api", environment, port) as process, httpx.Client(base_url=process.url, timeout=30) as client:
        yield client


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def total(ledger: psycopg.Connection[Any], dataset: str = "logs") -> int:
    row = ledger.execute(f"SELECT count(*) FROM {dataset}").fetchone()
    assert row is not None
    return int(row[0])


def post(ingest: httpx.Client, body: Any, path: str = "logs", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ingest.post(f"/api/collect/{path}", content=content, headers={"content-type": "application/json", **named})


def test_the_replies_of_the_contract(ingest: httpx.Client) -> None:
    assert ingest.get("/api/collect/health").json() == {"status": "UP"}
    one = post(ingest, LOG, "log").json()
    assert (one["status"], one["type"], one["duplicate"]) == ("accepted", "log", False)
    many = post(ingest, [LOG, LOG]).json()
    assert (many["status"], many["type"], many["count"], many["duplicate"]) == ("accepted", "logs", 2, False)
    assert many["batch_id"] > one["batch_id"]
    assert post(ingest, EVENT, "activity").json()["type"] == "activity"
    assert post(ingest, [EVENT], "activities").json()["count"] == 1


def test_replies_name_the_ledger_and_rows_for_another_one_are_refused(
    ingest: httpx.Client, ledger: psycopg.Connection[Any]
) -> None:
    known = (ledger.execute("SELECT id::text FROM ledger").fetchone() or ("",))[0]
    assert ingest.get("/api/collect/health").headers["Logpipe-Ledger"] == known
    stored = total(ledger)
    assert post(ingest, [LOG], **{"Logpipe-Ledger": known}).headers["Logpipe-Ledger"] == known
    refused = post(ingest, [LOG], **{"Logpipe-Ledger": "2b1a4c52-0000-4000-8000-000000000000"})
    assert refused.status_code == 412
    assert known in refused.json()["detail"]
    assert total(ledger) == stored + 1
    ledger.execute("UPDATE ledger SET id = gen_random_uuid()")  # as after a restore, under the running process
    try:
        assert post(ingest, [LOG], **{"Logpipe-Ledger": known}).status_code == 412
        assert total(ledger) == stored + 1
    finally:
        ledger.execute("UPDATE ledger SET id = %s", (known,))


def test_a_reply_means_the_rows_are_stored_as_the_ledger_says(
    ingest: httpx.Client, ledger: psycopg.Connection[Any], postgres_url: str
) -> None:
    batch_id = post(ingest, [{**LOG, "message": f"é {n}\n"} for n in range(500)]).json()["batch_id"]
    row = ledger.execute("SELECT rows, checksum FROM batches WHERE batch_id = %s", (batch_id,)).fetchone()
    dataset = datasets.find("logs")
    reader = PostgresReader(postgres_url)
    try:
        lines = RowCodec(dataset).encode(reader.rows(dataset, batch_id, batch_id))
    finally:
        reader.close()
    assert row == (len(lines), checksum(lines))


@pytest.mark.parametrize("content_type", [NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines"])
def test_lines_are_taken_under_each_name_that_tools_give_them(ingest: httpx.Client, content_type: str) -> None:
    lines = b"\n".join(json.dumps(LOG).encode() for _ in range(2))
    assert post(ingest, lines, content_type=content_type).json()["count"] == 2


def test_a_byte_order_mark_is_no_part_of_a_body(ingest: httpx.Client) -> None:
    for content_type, body in (("application/json", json.dumps([LOG])), (NDJSON, json.dumps(LOG))):
        assert post(ingest, b"\xef\xbb\xbf" + body.encode(), content_type=content_type).json()["count"] == 1


def test_ndjson_gzip_and_zstd_bodies(ingest: httpx.Client, ledger: psycopg.Connection[Any]) -> None:
    before = total(ledger)
    lines = b"\n".join(json.dumps(LOG).encode() for _ in range(10))
    assert post(ingest, lines, content_type=NDJSON).json()["count"] == 10
    halves = gzip.compress(lines + b"\n") + gzip.compress(lines)
    assert post(ingest, halves, content_type=NDJSON, content_encoding="gzip").json()["count"] == 20
    packed = zstandard.compress(lines)
    assert post(ingest, packed, content_type=NDJSON, content_encoding="zstd").json()["count"] == 10
    assert total(ledger) == before + 40


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"not json", {}, 400, "not valid JSON"),
        (b'[{"timestamp": "2026', {}, 400, "truncated"),
        (b"", {}, 400, "JSON"),
        ([{**LOG, "level": 5}], {}, 422, "level"),
        ([LOG, {"level": "INFO", "service": "x"}], {}, 422, "timestamp"),
        ([{**LOG, "colour": "red"}], {}, 422, "colour"),
        (LOG, {}, 422, "array"),
        ([], {}, 422, "no rows"),
        ([{**LOG, "message": "a\x00b"}], {}, 422, "NUL"),
        ([{**LOG, "message": "\ud800"}], {}, 400, "lone surrogate"),
        ([{**LOG, "timestamp": "2026-01-31T12:00:00"}], {}, 422, "zone"),
        ([{**LOG, "timestamp": "0001-01-01T00:00:00Z"}], {}, 422, "1970"),
        ([{**LOG, "timestamp": "9999-12-31T00:00:00Z"}], {}, 422, "2100"),
        ([{**LOG, "timestamp": 1769860800}], {}, 422, "timestamp"),
        ([{**LOG, "message": "x" * 300_000}], {}, 422, "bytes"),
        ([{**LOG, "message": "x" * 10_000_000}], {}, 413, "bytes"),
        (b"[" * 100_000, {}, 400, "nested too deeply"),
        (b"{nope", {}, 400, "not valid JSON"),
        (b"5 nope", {}, 400, "not valid JSON"),
        (b"{}\n{nope", {"content_type": NDJSON}, 400, "row 1: the line is not valid JSON"),
        (LINES, {}, 400, "application/x-ndjson"),
        (LINES, {"content_type": "text/plain"}, 400, "application/x-ndjson"),
        (LINES, {"content_type": "application/x-www-form-urlencoded"}, 400, "application/x-ndjson"),
        ([{**LOG, "timestamp": "2026-01-31T12:00Z"}], {}, 422, "second"),
        ([{**LOG, "timestamp": "2026-01-31T24:00:00Z"}], {}, 422, "hour"),
        ([{**LOG, "timestamp": 1769860800123}], {}, 422, "timestamp"),
        ([LOG] * 50_000, {}, 413, "several requests"),
        (gzip.compress(BOMB, mtime=0), {"content_encoding": "gzip", "content_type": NDJSON}, 413, "decompressed"),
        (zstandard.compress(BOMB), {"content_encoding": "zstd", "content_type": NDJSON}, 413, "decompressed"),
        (gzip.compress(b" " * MAX_BODY, mtime=0), {"content_encoding": "gzip"}, 422, "takes more than"),
        (gzip.compress(b"[]", mtime=0)[:-3], {"content_encoding": "gzip"}, 400, "gzip"),
        (gzip.compress(b"", mtime=0) * 1001, {"content_encoding": "gzip"}, 400, "members"),
        (b"[]", {"content_encoding": "zstd"}, 400, "zstd"),
        (zstandard.compress(LINES)[:-3], {"content_encoding": "zstd", "content_type": NDJSON}, 400, "too early"),
        (b"[]", {"content_encoding": "br"}, 415, "gzip"),
        (b"<log/>", {"content_type": "application/xml"}, 415, "application/json"),
        ([LOG], {"idempotency_key": "k" * 300}, 422, "Idempotency-Key"),
    ],
)
def test_bad_input_is_answered_and_stores_nothing(
    ingest: httpx.Client,
    ledger: psycopg.Connection[Any],
    body: Any,
    headers: dict[str, str],
    status: int,
    says: str,
) -> None:
    before = total(ledger)
    reply = post(ingest, body, **headers)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["status"] == status
    assert says in reply.json()["detail"]
    assert total(ledger) == before


def test_odd_json_in_metadata_is_kept_to_the_byte(ingest: httpx.Client, ledger: psycopg.Connection[Any]) -> None:
    odd = '{"n": 1e200000, "k": 1, "k": 2, "z": -0.0, "deep": ' + "[" * 150 + "]" * 150 + "}"
    body = json.dumps([LOG]).replace('{"a": 1}', odd).encode()
    batch_id = post(ingest, body).json()["batch_id"]
    row = ledger.execute("SELECT metadata::text FROM logs WHERE id >> 17 = %s", (batch_id,)).fetchone()
    assert row == (odd,)


def test_one_bad_request_never_fails_its_neighbours(ingest: httpx.Client, ledger: psycopg.Connection[Any]) -> None:
    before = total(ledger)
    bodies = [[LOG] * 10 if n % 3 else [LOG, {**LOG, "level": None}] for n in range(60)]
    with ThreadPoolExecutor(20) as threads:
        replies = list(threads.map(lambda body: post(ingest, body), bodies))
    assert [r.status_code for r in replies] == [200 if n % 3 else 422 for n in range(60)]
    assert total(ledger) == before + 40 * 10


def test_a_repeated_key_gives_the_first_answer_again(ingest: httpx.Client, ledger: psycopg.Connection[Any]) -> None:
    before = total(ledger)
    first = post(ingest, [LOG] * 3, idempotency_key="again").json()
    second = post(ingest, [LOG] * 3, idempotency_key="again").json()
    assert second == {**first, "duplicate": True}
    assert post(ingest, [LOG] * 2, idempotency_key="again").status_code == 422
    assert total(ledger) == before + 3


def test_of_requests_with_one_key_at_once_one_is_stored(ingest: httpx.Client, ledger: psycopg.Connection[Any]) -> None:
    before = total(ledger)
    with ThreadPoolExecutor(10) as threads:
        replies = list(threads.map(lambda _: post(ingest, [LOG] * 5, idempotency_key="race"), range(10)))
    assert {r.status_code for r in replies} <= {200, 409}
    assert sum(r.status_code == 200 and not r.json()["duplicate"] for r in replies) == 1
    assert total(ledger) == before + 5


def test_a_body_cut_in_the_middle_stores_nothing(ingest: httpx.Client, ledger: psycopg.Connection[Any]) -> None:
    before = total(ledger)
    body = json.dumps([LOG]).encode()
    for length, sent in ((len(body) + 10, body), (len(body), body[:20])):
        with socket.create_connection((ingest.base_url.host, ingest.base_url.port or 80)) as raw:
            head = f"POST /api/collect/logs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            raw.sendall(head.encode() + sent)
            raw.shutdown(socket.SHUT_WR)
            raw.settimeout(60)
            while raw.recv(4096):
                pass
    assert post(ingest, [LOG]).status_code == 200
    assert total(ledger) == before + 1


def test_a_content_length_that_is_too_small_is_refused(ingest: httpx.Client, ledger: psycopg.Connection[Any]) -> None:
    before = total(ledger)
    body = json.dumps([LOG]).encode()
    with socket.create_connection((ingest.base_url.host, ingest.base_url.port or 80)) as raw:
        head = f"POST /api/collect/logs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) - 5}\r\n\r\n"
        raw.sendall(head.encode() + body)
        raw.settimeout(60)
        assert b" 400 " in raw.recv(4096).split(b"\r\n")[0]
    assert total(ledger) == before


def test_what_is_accepted_comes_to_kafka_once_with_its_alerts(
    ingest: httpx.Client, ledger: psycopg.Connection[Any], kafka_url: str
) -> None:
    batch_id = post(ingest, [LOG] * 50 + [{**LOG, "level": "ERROR"}] * 5).json()["batch_id"]
    reader = kafka.KafkaPartitionReader(kafka_url, "logs.raw")
    alerts = kafka.KafkaPartitionReader(kafka_url, "alerts.realtime")
    try:
        own: list[bytes] = []
        raised: list[bytes] = []
        for found, source in ((own, reader), (raised, alerts)):
            source.assign({partition: low for partition, (low, _) in source.bounds().items()})
            while not any(line.startswith(b'{"id":%d,' % (batch_id << 17 | 54)) for line in found):
                for message in source.poll(1.0):
                    found += message.value.splitlines()
        mine = [line for line in own if int(json.loads(line)["id"]) >> 17 == batch_id]
        assert len(mine) == 55
        assert sum(int(json.loads(line)["id"]) >> 17 == batch_id for line in raised) == 5
    finally:
        reader.close()
        alerts.close()


def readiness(process: Process) -> str:
    try:
        return httpx.get(f"{process.url}/readyz", timeout=10).text
    except httpx.TransportError:
        return ""


def test_more_partitions_than_the_topics_have_are_refused_by_the_whole_process(
    ingest: httpx.Client, ledger: psycopg.Connection[Any], postgres_url: str, kafka_url: str
) -> None:
    port = free_port()
    environment = {
        "LOGPIPE_POSTGRES_URL": postgres_url,
        "LOGPIPE_KAFKA_URL": kafka_url,
        "LOGPIPE_KAFKA_PARTITIONS": "8",
        "LOGPIPE_INGEST_PORT": str(port),
        "LOGPIPE_INGEST_DISK_FLOOR": "0",
    }
    count = "SELECT count(*) FROM slots"
    before = ledger.execute(count).fetchone()
    process = Process("ingest-api", environment, port)
    try:
        process.launch()
        until(lambda: "LOGPIPE_KAFKA_PARTITIONS=4" in readiness(process), about=process.output)
        assert httpx.get(f"{process.url}/readyz", timeout=10).status_code == 503
        refused = httpx.post(f"{process.url}/api/collect/log", json=LOG, timeout=60)
        assert (refused.status_code, "LOGPIPE_KAFKA_PARTITIONS=4" in refused.text) == (503, True)
        time.sleep(3)  # three turns, in each of which a slot used to be made
        after = ledger.execute(count).fetchone()
        assert before is not None
        assert after is not None
        assert after[0] - before[0] <= 1
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("", {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("", {"Origin": "null", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ("evil.example", {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 421),
    ],
    ids=["beacon", "sandboxed form", "rebound name"],
)
def test_a_page_of_another_site_stores_nothing(
    ingest: httpx.Client, ledger: psycopg.Connection[Any], host: str, headers: dict[str, str], status: int
) -> None:
    before = total(ledger)
    port = ingest.base_url.port
    if host:
        headers = {**headers, "Host": f"{host}:{port}"}
    assert post(ingest, [LOG], content_type="text/plain", **headers).status_code == status
    assert total(ledger) == before
    upgrade = {**headers, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-Fetch-Mode": "websocket"}
    assert ingest.get("/api/collect/logs", headers=upgrade).status_code == status


def test_head_and_replies_that_no_page_can_frame(ingest: httpx.Client) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/api/collect/health"):
        head, got = ingest.head(path), ingest.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        assert got.headers["x-frame-options"] == "DENY"
        assert got.headers["cross-origin-resource-policy"] == "same-origin"


def test_large_bodies_of_both_layouts_are_stored_whole(ingest: httpx.Client, ledger: psycopg.Connection[Any]) -> None:
    before = total(ledger)
    rows = [{**LOG, "message": f"{n} }},{{"} for n in range(12_000)]
    lines = b"\n".join(json.dumps(row).encode() for row in rows)
    assert 1 << 20 < len(lines) < MAX_BODY
    first = post(ingest, gzip.compress(lines), content_type=NDJSON, content_encoding="gzip", idempotency_key="large")
    assert first.json()["count"] == 12_000
    again = post(ingest, lines, content_type=NDJSON, idempotency_key="large")
    assert again.json() == {**first.json(), "duplicate": True}
    assert post(ingest, rows).json()["count"] == 12_000
    assert total(ledger) == before + 24_000
    late = post(ingest, lines + b'\n{"level": "INFO"}', content_type=NDJSON)
    assert (late.status_code, late.json()["index"]) == (422, 12_000)
    assert total(ledger) == before + 24_000


def test_metrics_health_and_the_page_of_the_api(ingest: httpx.Client) -> None:
    assert "logpipe_ingest_rows_accepted_total" in ingest.get("/metrics").text
    assert ingest.get("/readyz").json() == {"status": "READY"}
    schema = ingest.get("/openapi.json").json()
    assert "/api/collect/activities" in schema["paths"]
    assert ingest.get("/nowhere").headers["content-type"] == "application/problem+json"
