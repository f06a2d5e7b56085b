"""Posts what the alerts' transactions left to be posted: at least once, in order for each alert, until it is taken.

A receiver drops repeats by the event's id, which is also the Idempotency-Key. Addresses may be secrets: they are not
stored, and logged without path and query.
"""

from collections.abc import Sequence
from threading import Event
from typing import Any

import httpx
import msgspec
from pydantic import SecretStr

from services.alerting.rules import Rule, masked
from services.alerts import repository as alerts
from services.alerts.repository import Post
from services.core import metric_names
from services.core.errors import StoreDown
from services.postgres.connection import Connection, connect
from services.runtime import logs, metrics

IDLE_SECONDS = 0.5
TIMEOUT_SECONDS = 5.0  # for each step of a request
LEASE_SECONDS = 30.0  # after which an event whose poster died is posted again
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0

_log = logs.get("alerting")


class Webhooks:
    """Where the alerts of a rule go."""

    def __init__(self, rules: Sequence[Rule], default: SecretStr | None) -> None:
        self._own = {rule.name: rule.webhook for rule in rules if rule.webhook}
        self._default = default

    def of(self, rule: str) -> SecretStr | None:
        return self._own.get(rule, self._default)

    def known(self, rule: str) -> bool:
        return self.of(rule) is not None


class Poster:
    """`run` belongs to one thread."""

    def __init__(self, postgres_url: str, webhooks: Webhooks, client: httpx.Client) -> None:
        self._url = postgres_url
        self._webhooks = webhooks
        self._client = client

    def run(self, stop: Event) -> None:
        while not stop.is_set():
            try:
                with connect(self._url) as connection:
                    while not stop.is_set():
                        if not self.step(connection):
                            stop.wait(IDLE_SECONDS)
            except StoreDown as error:
                _log.warning("nothing can be posted", reason=str(error))
                stop.wait(LONGEST_PAUSE / 60)

    def step(self, connection: Connection) -> bool:
        """Post one event; whether there was one. Raises StoreDown: it may have been posted, and will be again."""
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
        pause = min(FIRST_PAUSE * 2 ** (post.attempts - 1), LONGEST_PAUSE)
        _log.warning("not posted", alert=post.alert_id, alert_event=post.event, reason=problem, again_in=pause)
        alerts.failed(connection, post, problem, pause)
        metrics.counter(metric_names.ALERT_POST_FAILURES).inc()
        return True

    def _send(self, address: SecretStr | None, post: Post, alert: dict[str, Any]) -> str:
        """'' when it was taken, else why not."""
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
    """`text` is what chat systems show."""
    shown = {name: value for name, value in alert.items() if name != "posts"}
    if post.event == "opened":
        text = f"{alert['service']}: {alert['peak']} errors within {alert['window_seconds']} s"
    else:
        text = f"{alert['service']}: resolved, {alert['count']} errors in all"
    return {"id": event_id, "event": post.event, "text": f"{text} (rule {alert['rule']})", "alert": shown}
