"""Alerting on a real PostgreSQL: the loop at every step, and the process on a real Kafka, killed in between."""

import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from pydantic import SecretStr

from services import datasets
from services.alerting import book
from services.alerting import watcher as watching
from services.alerting.book import Policy
from services.alerting.episodes import judge
from services.alerting.rules import Rule
from services.alerting.watcher import Watcher
from services.alerting.webhook import Poster, Webhooks
from services.alerts import repository as alerts
from services.alerts.repository import Alert
from services.core import kafka_value
from services.core.backoff import Backoff
from services.core.ids import first_id
from services.core.ledger import Batch
from services.core.ports import OutgoingMessage
from services.core.rows import RowCodec, Rows
from services.datasets.logs import DATASET
from services.ledger import batches
from services.maintenance.settings import MaintainSettings
from services.maintenance.tasks import MaintenanceTasks
from services.postgres.connection import Connection, connect
from services.query_api.alerts import router
from services.runtime.health import Readiness
from services.runtime.http import make_app
from services.runtime.settings import ListenSettings, PostgresSettings
from services.streams import kafka, loop
from services.streams.loop import GroupLoop
from services.streams.memory import MemoryBroker
from tests.conftest import running
from tests.processes import Process, free_port
from tests.waiting import until

assert DATASET.alert is not None
TOPIC = DATASET.alert.topic
PARTITIONS = 4
START = 1_800_000_000  # a second
RULE = Rule(name="many", threshold=10, window=5, resolve_after=20)
CODEC = RowCodec(DATASET)


def errors(service: str, second: float, count: int, *, age: float = 0) -> list[OutgoingMessage]:
    """Messages as the publisher sends them: `count` errors accepted in that second."""
    created_at = int(second * 1_000_000)
    row = (created_at - int(age * 1_000_000), "ERROR", service, "host", "it broke", "{}")
    rows = [(first_id(1) + n, created_at, *row) for n in range(count)]
    made = kafka_value.encode(DATASET, 1, created_at, Rows.of(rows), CODEC.encode(rows), PARTITIONS)
    return [message for message in made if message.topic == TOPIC]


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[str]:
    """Batches that another test left unpublished would be waited for."""
    with running("postgres") as stack:
        yield stack.settings.urls()["LOGPIPE_POSTGRES_URL"]


@pytest.fixture
def connection(own_postgres: str) -> Iterator[Connection]:
    with connect(own_postgres) as opened:
        opened.execute("TRUNCATE alerts, alert_posts, alert_positions, alert_counts, batches RESTART IDENTITY")
        yield opened


# ---- the loop -------------------------------------------------------------------------------------------------------


class Scene:
    """A broker in memory and a clock by hand; watchers come and go."""

    def __init__(self, postgres_url: str, opened: ExitStack) -> None:
        self.now = float(START)
        self.broker = MemoryBroker()
        self.broker.ensure_topics({TOPIC: PARTITIONS})
        self.posted = True
        self._producer = self.broker.producer("test")
        self._url = postgres_url
        self._opened = opened

    def watcher(self, *rules: Rule, max_age: int = 3600) -> GroupLoop[Watcher]:
        """A member of the group that has its partitions."""
        policy = Policy(rules or (RULE,), lambda rule: self.posted, PARTITIONS, max_age)
        reader = self.broker.group_reader(TOPIC, "alerting")
        handler = Watcher(DATASET, policy, reader, self._url, lambda: None, lambda connection: self.now)
        made = GroupLoop("alerts", reader, handler)
        self._opened.callback(self.crash, made)
        assert made.health()
        made.step()
        assert made.health() is None
        return made

    @staticmethod
    def crash(watcher: GroupLoop[Watcher]) -> None:
        watcher._reader.close()
        watcher.handler.drop()

    def errors(self, service: str, second: float, count: int, *, age: float = 0) -> None:
        self.publish(*errors(service, second, count, age=age))

    def publish(self, *messages: OutgoingMessage) -> None:
        self._producer.publish(messages)

    def at(self, second: float, *watchers: GroupLoop[Watcher]) -> None:
        """All that was accepted some seconds before is judged."""
        self.now = second + watching.GRACE_SECONDS
        for each in watchers:
            for _ in range(4):
                each.step()
            assert each.health() is None


@pytest.fixture
def scene(own_postgres: str, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0)
    with ExitStack() as opened:
        yield Scene(own_postgres, opened)


def stored(connection: Connection) -> list[tuple[Any, ...]]:
    """(service, opened at, resolved at, count, posts), times from START."""
    return [
        (
            alert["service"],
            int(alert["opened_at"].timestamp()) - START,
            alert["resolved_at"] and int(alert["resolved_at"].timestamp()) - START,
            alert["count"],
            sorted(alert["posts"]),
        )
        for alert in reversed(alerts.find(connection, None, None, 100))
    ]


def test_an_episode_is_stored_with_what_is_to_be_posted(scene: Scene, connection: Connection) -> None:
    watcher = scene.watcher()
    scene.errors("a", START + 1, 9)
    scene.errors("b", START + 1, 3)
    scene.at(START + 3, watcher)
    assert stored(connection) == []
    scene.errors("a", START + 4, 5)
    scene.at(START + 4, watcher)
    assert stored(connection) == []  # that second is not over
    scene.at(START + 5, watcher)
    assert stored(connection) == [("a", 4, None, 14, ["opened"])]
    scene.at(START + 30, watcher)
    assert stored(connection) == [("a", 4, 26, 14, ["opened", "resolved"])]
    [shown] = alerts.find(connection, "resolved", "a", 1)
    assert (shown["sample"], shown["threshold"], shown["peak"]) == ("it broke", 10, 14)
    assert connection.execute("SELECT count(*) FROM alert_counts").fetchone() == (0,)  # nothing is kept for ever


def test_services_without_a_change_cost_a_judgement_nothing(
    scene: Scene, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many services with a row each are judged when their rows enter or leave a window, and forgotten together."""
    judged, deletions = list[str](), list[int]()
    forget = alerts.forget_counts

    def judge_and_note(rule: Rule, service: str, *arguments: Any) -> Iterator[Alert]:
        judged.append(service)
        return judge(rule, service, *arguments)

    def forget_and_note(connection: Connection, before: Mapping[str, int]) -> None:
        deletions.append(len(before))
        forget(connection, before)

    monkeypatch.setattr(book, "judge", judge_and_note)
    monkeypatch.setattr(alerts, "forget_counts", forget_and_note)
    watcher = scene.watcher(RULE.model_copy(update={"window": 60}))
    names = [f"hostile-{number}" for number in range(50)]
    for name in names:
        scene.errors(name, START + 1, 1)
    for second in range(2, 60):
        scene.errors("busy", START + second, 1)
        scene.at(START + second, watcher)
    assert sorted(name for name in judged if name != "busy") == sorted(names)
    assert stored(connection) == [("busy", 11, None, 57, ["opened"])]
    scene.at(START + 70, watcher)
    scene.at(START + 130, watcher)
    assert deletions == [51, 1]
    assert connection.execute("SELECT count(*) FROM alert_counts").fetchone() == (0,)


def test_a_new_rule_is_judged_by_the_rows_that_are_stored(scene: Scene, connection: Connection) -> None:
    before = scene.watcher(RULE.model_copy(update={"threshold": 100}))
    scene.errors("a", START + 1, 20)
    scene.at(START + 3, before)
    scene.crash(before)
    after = scene.watcher()
    scene.at(START + 3, after)  # no new second is complete
    scene.at(START + 4, after)
    scene.at(START + 40, after)
    assert stored(connection) == [("a", 3, 26, 20, ["opened", "resolved"])]


def test_whoever_comes_after_a_crash_goes_on_as_if_nothing_had_been(scene: Scene, connection: Connection) -> None:
    scene.crash(scene.watcher())  # the first ever: what came before it would not count
    for second in range(30):
        if second % 10 < 5:
            scene.errors("a", START + second, 4)
        scene.now = START + second
        watcher = scene.watcher()
        for _ in range(second % 4):  # it dies having read, judged or neither
            watcher.step()
        scene.crash(watcher)
    scene.at(START + 60, scene.watcher())
    assert stored(connection) == [("a", 2, 47, 60, ["opened", "resolved"])]


def test_the_place_moves_with_the_counts_or_not_at_all(
    scene: Scene, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = scene.watcher()
    scene.errors("a", START + 1, 20)

    def fail(*_: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(alerts, "add_post", fail)
        with pytest.raises(ConnectionError):
            scene.at(START + 5, watcher)
    assert stored(connection) == []
    scene.crash(watcher)
    scene.at(START + 5, scene.watcher())
    assert stored(connection) == [("a", 1, None, 20, ["opened"])]


def test_two_members_share_the_services_and_the_slower_one_is_fenced(scene: Scene, connection: Connection) -> None:
    names = [f"service-{n}" for n in range(12)]
    first = scene.watcher()
    second = scene.watcher()  # takes half of the partitions away
    for name in names:
        scene.errors(name, START + 1, 10)
    scene.at(START + 3, first, second)
    assert sorted(row[0] for row in stored(connection)) == sorted(names)
    with connection.transaction():
        connection.execute("UPDATE alert_positions SET next_offset = next_offset + 1")
    scene.errors(names[0], START + 4, 10)
    scene.now = START + 10
    for _ in range(4):
        first.step()
        second.step()
    assert "no longer at" in f"{first.health()} {second.health()}"


def test_a_back_fill_alerts_nobody(scene: Scene, connection: Connection) -> None:
    watcher = scene.watcher(max_age=60)
    scene.errors("old", START + 1, 100, age=61)
    scene.errors("late", START + 1, 10, age=59)
    scene.errors("early", START + 1, 10, age=-500)  # a clock that is fast
    scene.at(START + 3, watcher)
    assert sorted(row[0] for row in stored(connection)) == ["early", "late"]


def test_what_comes_late_counts_when_it_comes(scene: Scene, connection: Connection) -> None:
    watcher = scene.watcher()
    scene.errors("a", START + 10, 5)
    scene.at(START + 12, watcher)
    scene.errors("a", START + 3, 5)
    scene.at(START + 13, watcher)
    assert stored(connection) == [("a", 12, None, 10, ["opened"])]


def test_batches_that_are_not_in_kafka_yet_are_waited_for(scene: Scene, connection: Connection) -> None:
    watcher = scene.watcher()
    scene.errors("a", START + 1, 10)
    scene.at(START + 3, watcher)
    with connection.transaction(), connection.cursor() as cursor:
        [batch_id] = batches.draw_ids(cursor, 1).batch_ids
        batches.insert(cursor, [Batch(batch_id, 0, "logs", 10, 0, (START + 20) * 1_000_000)])
    scene.at(START + 50, watcher)  # quiet long enough, it seems
    assert stored(connection) == [("a", 1, None, 10, ["opened"])]
    scene.errors("a", START + 20, 10)
    connection.execute("UPDATE batches SET published_at = now()")
    scene.at(START + 51, watcher)
    assert stored(connection) == [("a", 1, 45, 20, ["opened", "resolved"])]


def test_a_batch_that_is_never_published_is_not_waited_for_for_ever(scene: Scene, connection: Connection) -> None:
    watcher = scene.watcher()
    with connection.transaction(), connection.cursor() as cursor:
        [batch_id] = batches.draw_ids(cursor, 1).batch_ids
        batches.insert(cursor, [Batch(batch_id, 0, "logs", 10, 0, START * 1_000_000)])
    scene.errors("a", START + 1, 10)
    scene.at(START + 30, watcher)
    assert stored(connection) == []
    scene.at(START + watching.HOLD_SECONDS + 2, watcher)
    assert [row[:2] for row in stored(connection)] == [("a", 1)]


def test_what_is_no_row_is_passed_over(scene: Scene, connection: Connection) -> None:
    watcher = scene.watcher()
    partition = errors("a", START, 1)[0].partition
    poison = [OutgoingMessage(TOPIC, partition, b"a", value) for value in (b"\xff\n", b"[]\n", b"{}\n", b"")]
    scene.broker.producer("somebody").publish(poison)
    scene.errors("a", START + 1, 10)
    scene.at(START + 3, watcher)
    assert [row[0] for row in stored(connection)] == ["a"]


LINE: dict[str, Any] = {"service": "a", "created_at": (START + 1) * 1_000_000, "timestamp": START, "message": "m"}


@pytest.mark.parametrize(
    "poison",
    [
        LINE | {"service": "".join(f"{n:x}" for n in range(5000))},  # accepted by an earlier release
        LINE | {"service": "a\0b"},
        LINE | {"created_at": 1 << 70},
        LINE | {"created_at": -5},
        LINE | {"timestamp": 1 << 63},
        LINE | {"service": None},
        "x",
    ],
)
def test_a_line_that_cannot_count_leaves_its_neighbours(scene: Scene, connection: Connection, poison: Any) -> None:
    watcher = scene.watcher()
    (good,) = errors("a", START + 1, 10)
    lines = good.value.splitlines(keepends=True)
    value = b"".join([*lines[:5], json.dumps(poison).encode() + b"\n", *lines[5:]])
    before = refused_lines()
    scene.broker.producer("somebody").publish([replace(good, value=value)])
    scene.at(START + 3, watcher)
    assert stored(connection) == [("a", 1, None, 10, ["opened"])]
    assert refused_lines() == before + 1


def test_a_sample_that_postgresql_cannot_hold_is_changed(scene: Scene, connection: Connection) -> None:
    watcher = scene.watcher()
    (good,) = errors("a", START + 1, 10)
    scene.broker.producer("x").publish([replace(good, value=good.value.replace(b"it broke", b"it\\u0000broke"))])
    scene.at(START + 3, watcher)
    [shown] = alerts.find(connection, None, "a", 1)
    assert shown["sample"] == "it\N{REPLACEMENT CHARACTER}broke"


def refused_lines() -> float:
    return REGISTRY.get_sample_value("logpipe_alerts_lines_refused_total") or 0.0


def test_a_message_of_a_newer_version_is_not_passed_over(scene: Scene, connection: Connection) -> None:
    watcher = scene.watcher()
    (newer,) = errors("a", START, 10)
    scene.publish(replace(newer, headers={**newer.headers, "version": b"2"}))
    scene.now = START + 60
    for _ in range(4):
        watcher.step()
    assert "newer version" in (watcher.health() or "")
    assert stored(connection) == []
    assert connection.execute("SELECT max(next_offset) FROM alert_positions").fetchone() == (0,)


def test_a_dropped_rule_leaves_no_alert_open(scene: Scene, connection: Connection) -> None:
    watcher = scene.watcher()
    scene.errors("a", START + 1, 10)
    scene.at(START + 3, watcher)
    scene.posted = False
    scene.crash(watcher)
    scene.at(START + 5, scene.watcher(RULE.model_copy(update={"service": "b"})))
    assert stored(connection) == [("a", 1, 5, 10, ["opened"])]


def test_postgres_or_kafka_unreachable_delays_alerts_and_loses_none(
    scene: Scene, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "BACKOFF", Backoff(0, 0))
    watcher = scene.watcher()
    scene.errors("a", START + 1, 10)
    watcher.step()
    assert watcher.handler._connection is not None
    watcher.handler._connection.close()
    scene.now = START + 3 + watching.GRACE_SECONDS
    watcher.step()
    assert "postgres" in (watcher.health() or "")
    scene.broker.down = True
    watcher.step()
    assert "kafka" in (watcher.health() or "")
    scene.broker.down = False
    scene.at(START + 3, watcher)
    assert stored(connection) == [("a", 1, None, 10, ["opened"])]


@pytest.mark.parametrize("rows", [1, 10], ids=["shorter", "longer than where the watcher was"])
def test_a_topic_created_again_under_a_watcher_is_read_from_its_start(
    scene: Scene, connection: Connection, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(loop, "BACKOFF", Backoff(0, 0))
    watcher = scene.watcher()
    for second in range(1, 4):
        scene.errors("a", START + second, 1)
    scene.at(START + 5, watcher)
    scene.broker.delete_topic(TOPIC)
    scene.broker.ensure_topics({TOPIC: PARTITIONS})
    for _ in range(rows):
        scene.errors("a", START + 6, 10 // rows + 1)
    scene.now = START + 8 + watching.GRACE_SECONDS
    for _ in range(20):
        watcher.step()
    assert watcher.health() is None
    assert connection.execute("SELECT sum(rows) FROM alert_counts WHERE second >= %s", (START + 6,)).fetchone() == (
        rows * (10 // rows + 1),
    )
    assert [alert[:2] for alert in stored(connection)] == [("a", 6)]


def test_a_clock_that_was_ahead_does_not_silence_alerts(
    scene: Scene, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "BACKOFF", Backoff(0, 0))
    watcher = scene.watcher()
    year = 365 * 86_400
    scene.errors("a", START + year, 1)
    scene.at(START + year + 3, watcher)
    scene.now = START + 10
    watcher.step()
    assert "clock went back" in (watcher.health() or "")
    watcher.step()
    scene.errors("a", START + 11, 10)
    scene.at(START + 13, watcher)
    assert [alert[:2] for alert in stored(connection)] == [("a", 11)]
    assert connection.execute("SELECT max(second) FROM alert_counts").fetchone() == (START + 11,)


def test_the_present_second_is_that_of_postgresql(
    own_postgres: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    expected = (connection.execute("SELECT extract(epoch FROM now())::float8").fetchone() or (0.0,))[0]
    assert 0 <= alerts.now(connection) - expected < 60


# ---- the webhook ----------------------------------------------------------------------------------------------------


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted; `statuses`: what the first requests are answered with, 204 after that."""

    daemon_threads = True

    def __init__(self, statuses: Sequence[int] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}/hook/secret?key=secret"
        self.statuses = list(statuses)
        self.posts: list[dict[str, Any]] = []

    def events(self) -> list[str]:
        return [post["event"] for post in self.posts]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/hook/secret?key=secret"
        assert self.headers["Idempotency-Key"] == body["id"]
        status = self.server.statuses.pop(0) if self.server.statuses else 204
        if status == 204:
            self.server.posts.append(body)
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def opened(connection: Connection, service: str = "a", **more: Any) -> int:
    alert = Alert(0, "many", service, 10, 5, START, 12, 11, "it broke", **more)
    alert_id = alerts.save(connection, alert)
    alerts.add_post(connection, alert_id, "opened")
    return alert_id


def poster(connection: Connection, address: str | None) -> Callable[[], bool]:
    webhooks = Webhooks([], SecretStr(address) if address else None)
    made = Poster("", webhooks, httpx.Client(timeout=5))

    def step() -> bool:
        connection.execute("UPDATE alert_posts SET next_try_at = now()")  # whatever pause there is, is over
        return made.step(connection)

    return step


def test_what_a_webhook_is_told(receiver: Receiver, connection: Connection) -> None:
    alert_id = opened(connection, resolved_at=START + 30)
    alerts.add_post(connection, alert_id, "resolved")
    step = poster(connection, receiver.address)
    assert [step(), step(), step()] == [True, True, False]
    assert [(post["id"], post["event"], post["text"]) for post in receiver.posts] == [
        ("alert-1-opened", "opened", "a: 11 errors within 5 s (rule many)"),
        ("alert-1-resolved", "resolved", "a: resolved, 12 errors in all (rule many)"),
    ]
    assert receiver.posts[0]["alert"]["opened_at"] == "2027-01-15T08:00:00Z"
    shown = alerts.get(connection, alert_id)
    assert shown
    assert [(bool(post["delivered_at"]), post["attempts"]) for post in shown["posts"].values()] == [(True, 1)] * 2


def test_alerts_resolved_long_ago_are_deleted_in_chunks_with_their_posts(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_FORGOTTEN_AT_ONCE", 2)
    old = [opened(connection, f"s{number}", resolved_at=START + 30) for number in range(5)]
    recent, is_open = opened(connection, "r", resolved_at=START + 100), opened(connection, "o")
    connection.execute("UPDATE alert_posts SET delivered_at = now()")
    undelivered = opened(connection, "u", resolved_at=START + 30)
    given_up = opened(connection, "g", resolved_at=START + 30)
    connection.execute(
        "UPDATE alert_posts SET created_at = now() - interval '25 hours' WHERE alert_id = %s", (given_up,)
    )
    assert alerts.forget_resolved(connection, START + 30) == 0
    assert alerts.forget_resolved(connection, START + 31) == len([*old, given_up])
    assert [alert["id"] for alert in alerts.find(connection, None, None, 100)] == [undelivered, is_open, recent]
    posts = connection.execute("SELECT alert_id FROM alert_posts ORDER BY 1").fetchall()
    assert posts == [(recent,), (is_open,), (undelivered,)]


def test_after_a_restore_ids_are_given_out_that_no_receiver_knows(connection: Connection) -> None:
    alerts.skip_used_ids(connection)
    first = opened(connection)
    assert first > 25_000_000  # seconds since 2026
    alerts.skip_used_ids(connection)
    assert opened(connection, "b") > first


def test_alerts_that_stay_are_not_read_to_find_those_that_go(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO alerts (rule, service, threshold, window_seconds, opened_at, resolved_at, count, peak, sample)"
        " SELECT 'many', 'a', 1, 1, now(), now(), 1, 1, '' FROM generate_series(1, 5000)"
    )
    connection.execute("VACUUM ANALYZE alerts")

    def rows_read() -> int:
        connection.execute("SELECT pg_stat_force_next_flush()")
        query = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'alerts'"
        row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    before = rows_read()
    assert alerts.forget_resolved(connection, START - 86_400 * 365) == 0
    assert rows_read() == before


@pytest.mark.parametrize("days", [None, 3])
def test_maintenance_deletes_alerts_by_the_retention_of_the_rows(
    connection: Connection, own_postgres: str, days: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", own_postgres)
    monkeypatch.setenv("LOGPIPE_HDFS_URL", tmp_path.as_uri())
    connection.execute("DELETE FROM retention_clock")
    now = int(alerts.now(connection))
    for ago in (4, 2):
        opened(connection, f"s{ago}", resolved_at=now - ago * 86_400)
    connection.execute("UPDATE alert_posts SET delivered_at = now()")
    settings = MaintainSettings(retention_days=days)
    assert len(list(MaintenanceTasks(settings, datasets.find("events"))._forget_alerts())) == 0
    said = list(MaintenanceTasks(settings, DATASET)._forget_alerts())
    assert [what.split(" that")[0] for what in said] == ([] if days is None else ["1 alerts deleted"])
    left = {alert["service"] for alert in alerts.find(connection, None, None, 100)}
    assert left == ({"s4", "s2"} if days is None else {"s2"})


def test_a_post_is_repeated_until_it_is_taken_and_before_what_follows(
    receiver: Receiver, connection: Connection
) -> None:
    receiver.statuses = [503, 302, 404]
    alert_id = opened(connection)
    step = poster(connection, receiver.address)
    assert step()
    alerts.add_post(connection, alert_id, "resolved")
    other = opened(connection, "b")
    while step():
        pass
    order = [post["id"] for post in receiver.posts]
    assert sorted(order) == [f"alert-{alert_id}-opened", f"alert-{alert_id}-resolved", f"alert-{other}-opened"]
    assert order.index(f"alert-{alert_id}-opened") < order.index(f"alert-{alert_id}-resolved")


def test_what_was_posted_and_not_marked_is_posted_again_under_the_same_id(
    receiver: Receiver, connection: Connection
) -> None:
    opened(connection)
    assert alerts.claim_post(connection, seconds=30) == (1, "opened", 1)
    assert alerts.claim_post(connection, seconds=30) is None  # its poster may still be at it
    step = poster(connection, receiver.address)  # it has died
    assert [step(), step()] == [True, False]
    assert [post["id"] for post in receiver.posts] == ["alert-1-opened"]


def test_a_failure_is_kept_and_waits_longer_each_time(connection: Connection) -> None:
    alert_id = opened(connection)
    step = poster(connection, f"http://127.0.0.1:{free_port()}/secret")
    pauses = []
    for _ in range(3):
        assert step()
        [(pause,)] = connection.execute("SELECT extract(epoch FROM next_try_at - now())::float FROM alert_posts")
        pauses.append(round(pause))
    assert pauses == [1, 2, 4]
    shown = alerts.get(connection, alert_id)
    assert shown
    assert shown["posts"]["opened"]["problem"].endswith("/...: ConnectError")
    assert "secret" not in str(shown)
    poster(connection, None)()
    shown = alerts.get(connection, alert_id)
    assert "no webhook any more" in str(shown)
    connection.execute("UPDATE alert_posts SET created_at = now() - interval '25 hours'")
    assert not step()


def delivered(connection: Connection) -> list[str]:
    """The events that were taken, in that order."""
    found = connection.execute("SELECT event FROM alert_posts WHERE delivered_at IS NOT NULL ORDER BY delivered_at")
    return [event for (event,) in found]


# ---- the API --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _nothing(app: FastAPI) -> AsyncIterator[None]:
    yield


async def test_the_api(own_postgres: str, connection: Connection) -> None:
    opened(connection, "a", resolved_at=START + 30)
    opened(connection, "a")
    opened(connection, "b")
    settings = PostgresSettings(postgres_url=SecretStr(own_postgres))

    app = make_app("test", ListenSettings(), [router(settings)], _nothing, Readiness())
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        body = (await client.get("/api/alerts")).json()
        assert (body["returned_count"], body["limit"]) == (3, 100)
        assert [(alert["id"], alert["service"], alert["state"]) for alert in body["data"]] == [
            (3, "b", "open"),
            (2, "a", "open"),
            (1, "a", "resolved"),
        ]
        for query, ids in (
            ("state=open", [3, 2]),
            ("state=resolved", [1]),
            ("service=a", [2, 1]),
            ("state=open&service=a", [2]),
            ("service=' OR 1=1 --", []),
            ("limit=1", [3]),
        ):
            found = (await client.get(f"/api/alerts?{query}")).json()["data"]
            assert [alert["id"] for alert in found] == ids, query
        one = (await client.get("/api/alerts/1")).json()
        assert (one["resolved_at"], one["posts"]["opened"]["delivered_at"]) == ("2027-01-15T08:00:30Z", None)
        for path, status in (
            ("/4", 404),
            ("/0", 422),
            ("/x", 422),
            (f"/{1 << 63}", 422),
            ("?limit=0", 422),
            ("?limit=1001", 422),
            ("?state=closed", 422),
            ("?service=%00", 422),
        ):
            reply = await client.get(f"/api/alerts{path}")
            assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json"), path


# ---- the process, killed --------------------------------------------------------------------------------------------


def test_killed_in_an_episode_it_posts_its_end_and_not_its_start_again(
    own_postgres: str, connection: Connection, kafka_url: str, receiver: Receiver, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{name: many, service: 'pay-*', threshold: 50, window: 2, resolve_after: 10}]")
    receiver.statuses = [503]
    port = free_port()
    environment = {
        "LOGPIPE_POSTGRES_URL": own_postgres,
        "LOGPIPE_KAFKA_URL": kafka_url,
        "LOGPIPE_KAFKA_PARTITIONS": str(PARTITIONS),
        "LOGPIPE_ALERTING_PORT": str(port),
        "LOGPIPE_ALERT_RULES": str(rules),
        "LOGPIPE_ALERT_WEBHOOK": receiver.address,
    }
    with (
        closing(kafka.KafkaProducer(kafka_url, "test-alerting")) as producer,
        Process("alerting", environment, port) as process,
    ):
        now = time.time()
        producer.publish([*errors("pay-1", now, 60), *errors("other", now, 60), *errors("pay-2", now, 49)])
        until(lambda: delivered(connection) == ["opened"])
        process.kill()
        process.start()
        until(lambda: delivered(connection) == ["opened", "resolved"])
        assert receiver.events() == ["opened", "resolved"]
        assert 'logpipe_alerts_open{rule="many"} 0.0' in httpx.get(f"{process.url}/metrics", timeout=60).text
        assert "secret" not in process.output()
        assert process.stop() in (0, -signal.SIGTERM)
    assert {post["id"]: post["alert"]["service"] for post in receiver.posts} == {
        "alert-1-opened": "pay-1",
        "alert-1-resolved": "pay-1",
    }
    assert [(row[0], row[3]) for row in stored(connection)] == [("pay-1", 60)]
