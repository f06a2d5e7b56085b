"""Posts the events that the alerts' transactions have stored, at least once and in order for each alert.

An event is posted until the receiver answers with success. The receiver drops repeats by the event's id, which is also
the Idempotency-Key. Addresses may be secrets: they are not stored, and they are logged without path and query.
"""

from collections.abc import Sequence
from typing import Any

import httpx
import msgspec
from pydantic import SecretStr

from services.alerting.rules import Rule, masked
from services.alerts import repository as alerts
from services.alerts.repository import Post
from services.core import metric_names
from services.core.backoff import Backoff
from services.postgres.connection import Connection, connect
from services.runtime import logs, metrics
from services.runtime.workers import Worker

IDLE_SECONDS = 0.5
TIMEOUT_SECONDS = 5.0  # for each step of a request
LEASE_SECONDS = 30.0  # after which an event whose poster died is posted again
BACKOFF = Backoff(1.0, 300.0)  # of one event whose post failed

_log = logs.get("alerting")


class Webhooks:
    """The address that the alerts of a rule are posted to."""

    def __init__(self, rules: Sequence[Rule], default: SecretStr | None) -> None:
        self._own = {rule.name: rule.webhook for rule in rules if rule.webhook}
        self._default = default

    def of(self, rule: str) -> SecretStr | None:
        return self._own.get(rule, self._default)

    def known(self, rule: str) -> bool:
        return self.of(rule) is not None


class Poster:
    """Posts with `client`, in the thread of `worker`. The process that opened `client` closes it."""

    def __init__(self, postgres_url: str, webhooks: Webhooks, client: httpx.Client) -> None:
        self._url = postgres_url
        self._webhooks = webhooks
        self._client = client
        self._connection: Connection | None = None

    def worker(self) -> Worker:
        """Return the thread that posts, not started yet."""
        return Worker("webhook", self._turn, close=self._disconnect)

    def _turn(self) -> float:
        try:
            if self._connection is None:
                self._connection = connect(self._url)
            return 0.0 if self.step(self._connection) else IDLE_SECONDS
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def step(self, connection: Connection) -> bool:
        """Post one event, and return whether there was one. Raises StoreDown: then the event is posted again."""
        post = alerts.claim_post(connection, LEASE_SECONDS)
        if post is None:
            return False
        alert = alerts.get(connection, post.alert_id)
        assert alert is not None
        problem = self._send(self._webhooks.of(alert["rule"]), post, alert)
        if not problem:
            alerts.delivered(connection, post)
            metrics.counter(metric_names.ALERTS_POSTED, post.event).inc()
            return True
        pause = BACKOFF.pause(post.attempts)
        _log.warning(
            "post failed, retrying", alert=post.alert_id, alert_event=post.event, reason=problem, seconds=pause
        )
        alerts.failed(connection, post, problem, pause)
        metrics.counter(metric_names.ALERT_POST_FAILURES).inc()
        return True

    def _send(self, address: SecretStr | None, post: Post, alert: dict[str, Any]) -> str:
        """Return why the post failed, '' if it succeeded."""
        if address is None:
            return f"rule {alert['rule']} has no webhook any more"
        event_id = f"alert-{post.alert_id}-{post.event}"
        headers = {"Content-Type": "application/json", "Idempotency-Key": event_id}
        try:
            body = msgspec.json.encode(_body(event_id, post, alert))
            with self._client.stream("POST", address.get_secret_value(), content=body, headers=headers) as response:
                taken = response.is_success
                return "" if taken else f"{masked(address)} answers {response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # its text may hold the address
            return f"{masked(address)}: {type(error).__name__}"


def _body(event_id: str, post: Post, alert: dict[str, Any]) -> dict[str, Any]:
    """Return the body of the post. Chat systems show its `text`."""
    shown = {name: value for name, value in alert.items() if name != "posts"}
    if post.event == "opened":
        text = f"{alert['service']}: {alert['peak']} errors within {alert['window_seconds']} s"
    else:
        text = f"{alert['service']}: resolved, {alert['count']} errors in all"
    return {"id": event_id, "event": post.event, "text": f"{text} (rule {alert['rule']})", "alert": shown}
