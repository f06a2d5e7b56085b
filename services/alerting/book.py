"""The counts and episodes of the partitions assigned to this process: as PostgreSQL has them, and what came since.

Counts, position and episodes are written in one transaction. After any error the book is thrown away, another is
loaded, and the topic is read again from there: what is in memory never decides more than what is stored.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import msgspec

from services.alerting.agenda import Agenda
from services.alerting.episodes import judge
from services.alerting.rules import Rule
from services.alerts import repository as alerts
from services.alerts.repository import Alert, Position, Tally
from services.core import metric_names
from services.core.errors import NeedsOperator
from services.core.kafka_value import has_newer_version, partition_of, size_problem, split
from services.core.lines import UNDECODABLE, Category, Instant
from services.core.ports import Message
from services.postgres.connection import Connection, translated
from services.runtime import logs, metrics

SAMPLE_CHARACTERS = 500
_SECOND = 1_000_000
_NUL = "\0"  # which PostgreSQL's texts cannot hold

_log = logs.get("alerting")


@dataclass(frozen=True, slots=True)
class Policy:
    """`posts`: whether alerts of a rule are posted. `partitions`: among so many errors are dealt out, by service.

    `max_age`: seconds; errors older than that when they were accepted are a back-fill, and do not count.
    """

    rules: Sequence[Rule]
    posts: Callable[[str], bool]
    partitions: int
    max_age: int


class _Row(msgspec.Struct):
    """What counts of a line of the topic; times in microseconds."""

    service: Category
    created_at: Instant
    timestamp: Instant
    message: str


_decoder = msgspec.json.Decoder(_Row)


class Book:
    """`kept`: of each partition, the first offset still kept and the end of the log. `second`: the present one.

    Raises StoreDown.
    """

    def __init__(
        self,
        connection: Connection,
        policy: Policy,
        topic_id: str,
        kept: Mapping[int, tuple[int, int]],
        second: int,
    ) -> None:
        self._connection = connection
        self._policy = policy
        self.topic_id = topic_id
        self._longest = max((rule.window for rule in policy.rules), default=0)
        self._resolve_after = {rule.name: rule.resolve_after for rule in policy.rules}
        # After these seconds, a row enters the windows of rules, leaves them, and is needed by none.
        self._delays = {0, self._longest, *(rule.window for rule in policy.rules)}
        # The place first: if another process moves it meanwhile, the first commit is fenced.
        self.positions = alerts.positions(connection, topic_id, kept, second)
        self._counts = alerts.counts(connection)
        self._open: dict[str, dict[str, Alert]] = {}  # service -> rule -> alert
        for alert in alerts.open_alerts(connection):
            self._open.setdefault(alert.service, {})[alert.rule] = alert
        self._agendas = {partition: Agenda() for partition in self.positions}
        for service in {*self._counts, *self._open}:
            self._plan(service, self._counts.get(service, {}), first=True)
        self._new: dict[tuple[str, int], Tally] = {}  # since the last commit
        self._show()

    @property
    def size(self) -> int:
        """The number of counts that wait for the next commit."""
        return len(self._new)

    def count(self, message: Message) -> None:
        """Count the errors of a message. Raises NeedsOperator for a message of a newer release."""
        if has_newer_version(message):
            raise NeedsOperator(
                f"{message.topic} has messages of a newer version than this process knows: it is older than the ingest"
                " API, update it; no message was passed over"
            )
        judged = self.positions[message.partition].judged
        for row in self._read(message):
            # What comes after its second was judged counts in the next one that will be.
            place = row.service, max(row.created_at // _SECOND, judged)
            before = self._new.get(place)
            sample = row.message[:SAMPLE_CHARACTERS].replace(_NUL, "\N{REPLACEMENT CHARACTER}")
            self._new[place] = Tally((before.rows if before else 0) + 1, sample)

    def commit(self, read_up_to: Mapping[int, int], complete: int) -> None:
        """Write that messages below `read_up_to` are counted, and seconds below `complete` judged.

        Blocks. Raises Fenced or StoreDown.
        """
        if not (self._new or self._counts or self._open):
            return  # nothing is lost by beginning at the old place again
        before = self.positions
        after = {p: Position(read_up_to[p], max(position.judged, complete)) for p, position in before.items()}
        with translated(), self._connection.transaction():
            for partition, position in before.items():
                alerts.move(self._connection, partition, self.topic_id, position, after[partition])
            alerts.add_counts(self._connection, self._new)
            self._add_up()
            self._judge_due({p: (before[p].judged, after[p].judged) for p in after})
        self.positions = after
        self._new = {}
        self._show()

    def _show(self) -> None:
        numbers = Counter(chain.from_iterable(self._open.values()))
        for rule in self._policy.rules:
            metrics.gauge(metric_names.ALERTS_OPEN, rule.name).set(numbers[rule.name])

    def _read(self, message: Message) -> Iterator[_Row]:
        rows, refused = _decoded(message)
        if refused.reason:
            found = {"partition": message.partition, "offset": message.offset, **refused._asdict()}
            _log.warning("lines skipped that are no rows of errors", **found)
            metrics.counter(metric_names.ALERT_LINES_REFUSED).inc(refused.lines)
        oldest = self._policy.max_age * _SECOND
        yield from (row for row in rows if row.created_at - row.timestamp <= oldest)

    def _add_up(self) -> None:
        for (service, second), tally in self._new.items():
            seconds = self._counts.setdefault(service, {})
            before = seconds.get(second)
            seconds[second] = Tally(before.rows + tally.rows, tally.sample) if before else tally
            self._plan(service, [second])

    def _plan(self, service: str, seconds: Iterable[int], *, first: bool = False) -> None:
        """Plan the judgements of a service: for when the rows of these seconds may change something.

        `first`: also for the first second to be judged, because the rules may be new.
        """
        partition = partition_of(service, self._policy.partitions)
        agenda = self._agendas.get(partition)
        if agenda is None:  # another process has the partition
            return
        if first:
            agenda.add(self.positions[partition].judged, service)
        for second in seconds:
            for delay in self._delays:
                agenda.add(second + delay, service)

    def _judge_due(self, seconds: Mapping[int, tuple[int, int]]) -> None:
        """Judge the services that are due. `seconds`: partition -> the first second to judge, and the end."""
        due = [
            (service, partition)
            for partition, (since, until) in seconds.items()
            if since < until
            for service in self._agendas[partition].take(until)
        ]
        forgotten: dict[str, int] = {}
        for service, partition in sorted(due):
            since, until = seconds[partition]
            for alert in self._judged(service, since, until):
                self._save(alert)
                if alert.quiet_since is not None and alert.resolved_at is None:
                    self._agendas[partition].add(alert.quiet_since + self._resolve_after[alert.rule] - 1, service)
            if self._forget(service, until - self._longest):
                forgotten[service] = until - self._longest
        if forgotten:
            alerts.forget_counts(self._connection, forgotten)

    def _judged(self, service: str, since: int, until: int) -> Iterator[Alert]:
        """Yield the alerts of a service as they are after these seconds."""
        tallies, opened = self._counts.get(service, {}), dict(self._open.get(service, {}))
        for rule in self._policy.rules:
            if rule.matches(service):
                yield from judge(rule, service, tallies, opened.pop(rule.name, None), since, until)
        for alert in opened.values():  # of rules that were removed
            yield replace(alert, resolved_at=until)

    def _save(self, alert: Alert) -> None:
        opened = self._open.get(alert.service, {})
        if alert == opened.get(alert.rule):
            return
        alert_id = alerts.save(self._connection, alert)
        posted = self._policy.posts(alert.rule)
        if not alert.id:
            _log.warning("alert opened", alert=alert_id, rule=alert.rule, service=alert.service, peak=alert.peak)
            if posted:
                alerts.add_post(self._connection, alert_id, "opened")
        if alert.resolved_at is None:
            self._open.setdefault(alert.service, {})[alert.rule] = replace(alert, id=alert_id)
            return
        opened.pop(alert.rule, None)
        if not opened:
            self._open.pop(alert.service, None)
        _log.info("alert resolved", alert=alert_id, rule=alert.rule, service=alert.service, count=alert.count)
        if posted:
            alerts.add_post(self._connection, alert_id, "resolved")

    def _forget(self, service: str, before: int) -> bool:
        """Forget the counts that no window needs any more, and return whether there were any."""
        seconds = self._counts.get(service, {})
        if not any(second < before for second in seconds):
            return False
        kept = {second: tally for second, tally in seconds.items() if second >= before}
        if kept:
            self._counts[service] = kept
        else:
            del self._counts[service]
        return True


class _Refused(NamedTuple):
    """How many lines of a message are no rows of errors, and why the first of them is none ('': all lines are rows)."""

    lines: int = 0
    reason: str = ""

    def one_more(self, reason: str) -> "_Refused":
        return _Refused(self.lines + 1, self.reason or reason)


def _decoded(message: Message) -> tuple[list[_Row], _Refused]:
    """Return the rows of a message, and its lines that are none. A message that is too large has no rows.

    The services are keys in PostgreSQL: one that cannot be a key would fail every later commit.
    """
    value, refused = message.value, _Refused()
    if problem := message.problem or size_problem(value):
        return [], _Refused(value.count(b"\n"), problem)
    try:
        rows = _decoder.decode_lines(value)
    except UNDECODABLE:
        rows = []
        for line in filter(None, split(value)):
            try:
                rows.append(_decoder.decode(line))
            except UNDECODABLE as error:
                refused = refused.one_more(str(error))
    valid = [row for row in rows if _NUL not in row.service]
    for _ in range(len(rows) - len(valid)):
        refused = refused.one_more("the service contains the character NUL")
    return valid, refused
