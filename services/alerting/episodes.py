"""When an alert opens and ends, from the rows of each second. No I/O, no clock.

A window is the `window` seconds up to and with a second. Seconds are judged in order, each once, when no more rows of
it are to come: the same rows give the same episodes, however late they are read, with whatever interruptions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from services.alerting.rules import Rule
from services.alerts.repository import Alert, Tally

_NONE = Tally(0)


def judge(
    rule: Rule, service: str, tallies: Mapping[int, Tally], alert: Alert | None, since: int, until: int
) -> Iterator[Alert]:
    """Yield the alerts of one rule and service as they stand after the seconds from `since` up to before `until`.

    `alert`: the open one. `tallies` reach back `rule.window` seconds before `since`. Those that ended come first, the
    one that is still open last.
    """
    rows = sum(tally.rows for second, tally in tallies.items() if since - rule.window <= second < since)
    for second in _changes(rule, tallies, since, until):
        if alert and (ended := _ended(rule, alert, second)):
            yield ended
            alert = None
        new = tallies.get(second, _NONE)
        rows += new.rows - tallies.get(second - rule.window, _NONE).rows
        if alert:
            alert = replace(alert, count=alert.count + new.rows, peak=max(alert.peak, rows))
        if rows < rule.threshold:
            if alert and alert.quiet_since is None:
                alert = replace(alert, quiet_since=second)
        elif alert:
            alert = replace(alert, quiet_since=None)
        else:
            alert = Alert(0, rule.name, service, rule.threshold, rule.window, second, rows, rows, new.sample)
    if alert:
        yield _ended(rule, alert, until) or alert


def _changes(rule: Rule, tallies: Mapping[int, Tally], since: int, until: int) -> list[int]:
    """Return the seconds at which a window may have another number of rows, and the first, as the rule may be new."""
    if since >= until:
        return []
    moments = {moment for second in tallies for moment in (second, second + rule.window)}
    return sorted({since, *(moment for moment in moments if since < moment < until)})


def _ended(rule: Rule, alert: Alert, now: int) -> Alert | None:
    if alert.quiet_since is None or now < alert.quiet_since + rule.resolve_after:
        return None
    return replace(alert, resolved_at=alert.quiet_since + rule.resolve_after)
