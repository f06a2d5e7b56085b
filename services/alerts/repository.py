"""All SQL about alerts: alerting's positions, its counts, the episodes, and the events to be posted.

Alerting writes the results of one judgement in one transaction, `move` first: the position and the state never differ,
and a second process at the same partition is fenced. The functions that alerting calls inside that transaction raise
psycopg's errors, which the caller translates; all others raise StoreDown. Times are whole seconds since 1970.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from psycopg.rows import dict_row

from services.core.errors import Fenced
from services.postgres import migrations
from services.postgres.clock import now_microseconds
from services.postgres.connection import Connection, translated
from services.postgres.deletion import delete_in_chunks

MIGRATIONS = migrations.Migrations(Path(__file__).with_name("migrations"))
Event = Literal["opened", "resolved"]
State = Literal["open", "resolved"]

_AHEAD_SECONDS = 60  # the most by which the clocks that rows were accepted by differ
_FORGOTTEN_AT_ONCE = 1000  # alerts deleted in one transaction
GIVE_UP_HOURS = 24  # after this time, an event that no webhook has taken is no longer posted


class Position(NamedTuple):
    """All messages below `next_offset` are counted; all seconds below `judged` are judged."""

    next_offset: int
    judged: int


class Tally(NamedTuple):
    """The error rows of a service in one second, with a message of one of them."""

    rows: int
    sample: str = ""


@dataclass(frozen=True, slots=True)
class Alert:
    """One episode. `id` is 0 until the alert is stored.

    `count`: the rows since the start of the window that opened the alert. `peak`: the most rows in one window.
    `quiet_since`: the second since which windows have had fewer rows than `threshold`; None while they have enough.
    """

    id: int
    rule: str
    service: str
    threshold: int
    window: int
    opened_at: int
    count: int
    peak: int
    sample: str
    quiet_since: int | None = None
    resolved_at: int | None = None


class Post(NamedTuple):
    """An event to be posted. `attempts` includes the present one."""

    alert_id: int
    event: Event
    attempts: int


_OPEN = """SELECT id, rule, service, threshold, window_seconds, extract(epoch FROM opened_at)::bigint, count, peak,
                  sample, extract(epoch FROM quiet_since)::bigint
           FROM alerts WHERE resolved_at IS NULL"""
_SHOWN = """SELECT id, rule, service, CASE WHEN resolved_at IS NULL THEN 'open' ELSE 'resolved' END AS state, threshold,
                   window_seconds, opened_at, resolved_at, count, peak, sample,
                   (SELECT coalesce(jsonb_object_agg(event, jsonb_build_object(
                               'delivered_at', delivered_at, 'attempts', attempts, 'problem', problem)), '{}')
                    FROM alert_posts WHERE alert_id = alerts.id) AS posts
            FROM alerts """


def require(connection: Connection) -> None:
    """Raise StoreDown, which names `logpipe migrate`, while the alerts' tables are older than this release."""
    migrations.require(connection, MIGRATIONS)


# ---- judging --------------------------------------------------------------------------------------------------------


def now(connection: Connection) -> float:
    """Seconds since 1970 by PostgreSQL's clock, which gave the batches their times."""
    return now_microseconds(connection) / 1e6


def positions(
    connection: Connection, topic_id: str, kept: Mapping[int, tuple[int, int]], second: int
) -> dict[int, Position]:
    """Return the position of each partition in `kept`: partition -> (first offset still kept, end of the log).

    `second` is the present one. A new partition begins at its end, so that errors from before alerting was started
    raise no alert. A topic that was created again begins at its start. Messages that retention has deleted are skipped.

    No position is judged beyond the present second: it would come from a time at which PostgreSQL's clock was ahead.
    Counts far beyond the present second are deleted for the same reason: they were judged while the clock was ahead.
    """
    with translated(), connection.transaction():
        connection.execute("DELETE FROM alert_counts WHERE second > %s", (second + _AHEAD_SECONDS,))
        for partition, (first, end) in kept.items():
            connection.execute(
                "INSERT INTO alert_positions AS p VALUES (%s, %s, %s, %s) ON CONFLICT (partition) DO UPDATE"
                " SET topic_id = excluded.topic_id, judged = least(p.judged, excluded.judged),"
                " next_offset = CASE WHEN p.topic_id = excluded.topic_id THEN greatest(p.next_offset, %s) ELSE %s END",
                (partition, topic_id, end, second, first, first),
            )
        found = connection.execute(
            "SELECT partition, next_offset, judged FROM alert_positions WHERE partition = ANY(%s)", (list(kept),)
        )
        return {partition: Position(*position) for partition, *position in found}


def move(connection: Connection, partition: int, topic_id: str, before: Position, after: Position) -> None:
    """Move a partition's position. Raises Fenced when another process has moved it."""
    done = connection.execute(
        "UPDATE alert_positions SET next_offset = %s, judged = %s"
        " WHERE partition = %s AND topic_id = %s AND next_offset = %s AND judged = %s",
        (*after, partition, topic_id, *before),
    )
    if done.rowcount == 0:
        raise Fenced(f"partition {partition} of the alerts is no longer at {before.next_offset}")


def counts(connection: Connection) -> dict[str, dict[int, Tally]]:
    """Return all counts: service -> second -> tally."""
    found: dict[str, dict[int, Tally]] = {}
    with translated():
        for service, second, *tally in connection.execute("SELECT service, second, rows, sample FROM alert_counts"):
            found.setdefault(service, {})[second] = Tally(*tally)
    return found


def add_counts(connection: Connection, more: Mapping[tuple[str, int], Tally]) -> None:
    """Add to the stored counts: (service, second) -> tally."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO alert_counts AS c VALUES (%s, %s, %s, %s) ON CONFLICT (service, second)"
            " DO UPDATE SET rows = c.rows + excluded.rows, sample = excluded.sample",
            [(*place, *tally) for place, tally in more.items()],
        )


def forget_counts(connection: Connection, before: Mapping[str, int]) -> None:
    """Delete the counts of services in the seconds below these: service -> second."""
    connection.execute(
        "DELETE FROM alert_counts USING unnest(%s::text[], %s::bigint[]) AS old (service, before)"
        " WHERE alert_counts.service = old.service AND second < before",
        (list(before), list(before.values())),
    )


def open_alerts(connection: Connection) -> list[Alert]:
    """Return the alerts that are not resolved."""
    with translated():
        return [Alert(*row) for row in connection.execute(_OPEN)]


def save(connection: Connection, alert: Alert) -> int:
    """Store a new or a changed alert, and return its id."""
    times = (alert.quiet_since, alert.resolved_at)
    if alert.id:
        connection.execute(
            "UPDATE alerts SET count = %s, peak = %s, quiet_since = to_timestamp(%s), resolved_at = to_timestamp(%s)"
            " WHERE id = %s",
            (alert.count, alert.peak, *times, alert.id),
        )
        return alert.id
    row = connection.execute(
        "INSERT INTO alerts (rule, service, threshold, window_seconds, opened_at, count, peak, sample, quiet_since,"
        " resolved_at) VALUES (%s, %s, %s, %s, to_timestamp(%s), %s, %s, %s, to_timestamp(%s), to_timestamp(%s))"
        " RETURNING id",
        (
            *(alert.rule, alert.service, alert.threshold, alert.window, alert.opened_at),
            *(alert.count, alert.peak, alert.sample),
            *times,
        ),
    ).fetchone()
    assert row is not None
    return int(row[0])


def forget_resolved(connection: Connection, before: int) -> int:
    """Delete the alerts that were resolved before second `before`, with their posts; return how many alerts.

    A few are deleted in each transaction. An alert with a post that is still to be delivered is kept: alerting may have
    resolved the alert long after the second in which the errors stopped.
    """
    statement = """
        DELETE FROM alerts WHERE id = ANY(ARRAY(
            SELECT id FROM alerts WHERE resolved_at < to_timestamp(%s) AND NOT EXISTS (
                SELECT FROM alert_posts WHERE alert_id = id AND delivered_at IS NULL
                  AND alert_posts.created_at > now() - make_interval(hours => %s))
            ORDER BY resolved_at LIMIT %s))"""
    return delete_in_chunks(connection, statement, (before, GIVE_UP_HOURS), _FORGOTTEN_AT_ONCE)


def skip_used_ids(connection: Connection) -> None:
    """Let the ids of new alerts go on above every id that was ever given out. Called after a backup was restored.

    Receivers drop repeated events by the alert's id, and the restored sequence would give out ids that they know. The
    new ids begin at the number of seconds since 2026: fewer alerts are opened than one each second.
    """
    with translated():
        connection.execute(
            "SELECT setval(pg_get_serial_sequence('alerts', 'id'), greatest((SELECT max(id) FROM alerts), seconds))"
            " FROM (SELECT extract(epoch FROM clock_timestamp() - '2026-01-01')::bigint AS seconds) AS clock"
        )


# ---- posting --------------------------------------------------------------------------------------------------------


def add_post(connection: Connection, alert_id: int, event: Event) -> None:
    """Have an event posted."""
    connection.execute("INSERT INTO alert_posts (alert_id, event) VALUES (%s, %s)", (alert_id, event))


def claim_post(connection: Connection, seconds: float) -> Post | None:
    """Return the next event to post; no other caller gets it for `seconds`. None when none is due.

    The event `resolved` of an alert is not due before its event `opened` was delivered. The event with the fewest
    attempts comes first, so that an unreachable receiver does not delay the others.
    """
    with translated():
        row = connection.execute(
            """
            UPDATE alert_posts SET attempts = attempts + 1, next_try_at = now() + make_interval(secs => %s)
            WHERE (alert_id, event) = (
                SELECT alert_id, event FROM alert_posts AS due
                WHERE delivered_at IS NULL AND next_try_at <= now() AND created_at > now() - make_interval(hours => %s)
                  AND (event = 'opened' OR NOT EXISTS (
                      SELECT FROM alert_posts AS first
                      WHERE first.alert_id = due.alert_id AND first.event = 'opened' AND first.delivered_at IS NULL))
                ORDER BY attempts, next_try_at, alert_id LIMIT 1 FOR UPDATE SKIP LOCKED
            ) RETURNING alert_id, event, attempts
            """,
            (seconds, GIVE_UP_HOURS),
        ).fetchone()
    return Post(*row) if row else None


def delivered(connection: Connection, post: Post) -> None:
    """Note that a receiver has taken the event."""
    with translated():
        connection.execute(
            "UPDATE alert_posts SET delivered_at = now(), problem = '' WHERE alert_id = %s AND event = %s", post[:2]
        )


def failed(connection: Connection, post: Post, problem: str, seconds: float) -> None:
    """Note why posting failed, and have it tried again after `seconds`."""
    with translated():
        connection.execute(
            "UPDATE alert_posts SET problem = %s, next_try_at = now() + make_interval(secs => %s)"
            " WHERE alert_id = %s AND event = %s",
            (problem, seconds, *post[:2]),
        )


# ---- reading --------------------------------------------------------------------------------------------------------


def find(connection: Connection, state: State | None, service: str | None, limit: int) -> list[dict[str, Any]]:
    """Return the alerts in this state and of this service (None: all), the newest first."""
    with translated(), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            f"{_SHOWN} WHERE (%(state)s::text IS NULL OR (resolved_at IS NULL) = (%(state)s = 'open'))"
            " AND (%(service)s::text IS NULL OR service = %(service)s) ORDER BY id DESC LIMIT %(limit)s",
            {"state": state, "service": service, "limit": limit},
        ).fetchall()


def get(connection: Connection, alert_id: int) -> dict[str, Any] | None:
    """Return one alert with its posts; None when there is no such alert."""
    with translated(), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(f"{_SHOWN} WHERE id = %s", (alert_id,)).fetchone()
