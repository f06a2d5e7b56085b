"""Alerts: what rules may say, and when episodes begin and end. The loop itself is tested on real components."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from services.alerting.book import _decoded
from services.alerting.episodes import judge
from services.alerting.main import main
from services.alerting.rules import DEFAULT_RULES, Rule, load, masked
from services.alerting.settings import AlertingSettings
from services.alerting.webhook import Webhooks
from services.alerts.repository import Alert, Tally
from services.core.errors import NeedsOperator
from services.core.ids import MAX_BATCH_ROWS
from services.core.ports import Message

GOOD = "{name: slow, service: 'pay-*', threshold: 10, window: 5, resolve_after: 20, webhook: 'https://h/x'}"
RULE = Rule(name="r", threshold=10, window=5, resolve_after=20)


def rules(text: str, tmp_path: Path) -> list[Rule]:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    return load(path)


# ---- rules ----------------------------------------------------------------------------------------------------------


def test_a_file_of_rules(tmp_path: Path) -> None:
    found = rules(f"rules:\n  - {GOOD}\n  - {{name: all, threshold: 1, window: 60, resolve_after: 60}}\n", tmp_path)
    assert [(r.name, r.service, r.threshold, r.window, r.resolve_after) for r in found] == [
        ("slow", "pay-*", 10, 5, 20),
        ("all", "*", 1, 60, 60),
    ]
    assert [found[0].matches(service) for service in ("pay-1", "Pay-1", "repay-1", "pay-")] == [
        True,
        False,
        False,
        True,
    ]
    assert found[1].matches("anything at all")
    assert load(DEFAULT_RULES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rules: [", "cannot be read"),
        ("", "Input should be a valid dictionary"),
        ("rules: {}", "rules: Input should be a valid list"),
        ("rule: []", "rule: Extra inputs are not permitted"),
        (
            f"rules: [{GOOD.replace('threshold: 10', 'threshold: 0')}]",
            "rule 1 (slow), threshold: Input should be great",
        ),
        (
            f"rules: [{GOOD.replace('window: 5', 'window: 5m')}]",
            "rule 1 (slow), window: Input should be a valid integer",
        ),
        (f"rules: [{GOOD.replace('window: 5, ', '')}]", "rule 1 (slow), window: Field required"),
        (f"rules: [{GOOD}, {{name: b, level: WARN}}]", "rule 2 (b), level: Extra inputs are not permitted"),
        ("rules: [{threshold: 3}]", "rule 1, name: Field required"),
        ("rules: [3]", "rule 1: Input should be a valid dictionary"),
        (f"rules: [{GOOD}, {GOOD}]", "two rules have the name slow"),
        *(
            (
                f"rules: [{GOOD.replace('https://h/x', address)}]",
                "rule 1 (slow), webhook: Value error, must be an address",
            )
            for address in ("ftp://h/secret", "secret", "https:///secret", "http://h:port/secret", "file:///secret")
        ),
    ],
)
def test_a_wrong_rule_is_named_with_its_field(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(NeedsOperator) as caught:
        rules(text, tmp_path)
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_the_command_says_what_is_wrong_with_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGPIPE_ALERT_RULES", str(tmp_path / "none.yaml"))
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert "none.yaml" in result.stderr


def test_a_webhook_of_the_settings_is_checked_and_not_shown() -> None:
    with pytest.raises(ValidationError, match="must be an address") as caught:
        AlertingSettings(alert_webhook=SecretStr("ftp://h/secret"))
    assert "secret" not in str(caught.value)


def test_an_address_is_masked_in_logs() -> None:
    assert (
        masked(SecretStr("https://user:secret@h.example:8443/services/secret?key=secret"))
        == "https://h.example:8443/..."
    )


def test_a_rule_has_its_own_webhook_or_the_common_one() -> None:
    own, common = SecretStr("https://own/"), SecretStr("https://common/")
    webhooks = Webhooks([RULE, RULE.model_copy(update={"name": "o", "webhook": own})], common)
    assert (webhooks.of("o"), webhooks.of("r"), webhooks.of("removed")) == (own, common, common)
    assert not Webhooks([RULE], None).known("r")


# ---- episodes -------------------------------------------------------------------------------------------------------


def episodes(rows: dict[int, int], until: int, *, steps: list[int] | None = None, rule: Rule = RULE) -> list[Alert]:
    """All alerts after the seconds from 0 up to before `until`, judged in one go or in steps that end there."""
    tallies = {second: Tally(count, f"at {second}") for second, count in rows.items()}
    ended: list[Alert] = []
    opened, since = None, 0
    for end in [*(steps or []), until]:
        known = {s: t for s, t in tallies.items() if s >= since - rule.window}
        found = list(judge(rule, "s", known, opened, since, end))
        ended += [alert for alert in found if alert.resolved_at is not None]
        opened = next((alert for alert in found if alert.resolved_at is None), None)
        since = end
    return [*ended, *([opened] if opened else [])]


def test_too_few_in_a_window_open_nothing() -> None:
    assert episodes({1: 9, 6: 9, 11: 9}, 100) == []


def test_an_episode() -> None:
    rows = {10: 4, 12: 6, 14: 7, 20: 1, 22: 1}
    opened = Alert(0, "r", "s", threshold=10, window=5, opened_at=12, count=10, peak=10, sample="at 12")
    assert episodes(rows, 13) == [opened]
    assert episodes(rows, 15) == [replace(opened, count=17, peak=17)]
    # At 17 the window holds 13..17: 7 rows, too few. Rows after that still belong to the episode.
    assert episodes(rows, 36) == [replace(opened, count=19, peak=17, quiet_since=17)]
    assert episodes(rows, 37) == [replace(opened, count=19, peak=17, quiet_since=17, resolved_at=37)]


def test_flapping_is_one_episode_and_a_pause_long_enough_is_two() -> None:
    [one] = episodes({0: 10, 20: 10, 40: 10}, 60)
    assert (one.count, one.quiet_since, one.resolved_at) == (30, 45, None)
    first, second = episodes({0: 10, 30: 10}, 60)
    assert (first.opened_at, first.resolved_at) == (0, 25)
    assert (second.opened_at, second.resolved_at) == (30, 55)


def test_a_rule_made_stricter_or_slacker_takes_the_open_alert_over() -> None:
    [alert] = judge(RULE, "s", {0: Tally(10)}, None, 0, 2)
    slack = RULE.model_copy(update={"threshold": 100})
    [quiet] = judge(slack, "s", {0: Tally(10)}, alert, 2, 3)
    assert quiet.quiet_since == 2
    [resolved] = judge(slack, "s", {}, alert, 30, 60)
    assert (resolved.quiet_since, resolved.resolved_at) == (30, 50)


@given(
    st.dictionaries(st.integers(0, 120), st.integers(1, 15), max_size=30),
    st.lists(st.integers(0, 150), max_size=12),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_steps_change_nothing(rows: dict[int, int], steps: list[int], window: int, resolve_after: int) -> None:
    rule = RULE.model_copy(update={"window": window, "resolve_after": resolve_after})
    whole = episodes(rows, 150, rule=rule)
    assert episodes(rows, 150, steps=sorted(steps), rule=rule) == whole
    for alert in whole:
        naive = [sum(rows.get(s, 0) for s in range(t - window + 1, t + 1)) for t in range(150)]
        assert naive[alert.opened_at] >= 10
        end = 150 if alert.resolved_at is None else alert.resolved_at
        assert alert.peak == max(naive[alert.opened_at : end])
    opened = sum(rows.values()) >= 10 and any(
        sum(rows.get(s, 0) for s in range(t - window + 1, t + 1)) >= 10 for t in range(150)
    )
    assert bool(whole) == opened


# ---- messages of other programs -------------------------------------------------------------------------------------


def test_only_the_first_of_many_bad_lines_keeps_its_reason() -> None:
    rows, refused = _decoded(Message("alerts", 0, 0, b"", b"x\n" + b"{}\n" * 1000))
    assert (rows, refused.lines) == ([], 1001)
    assert "malformed" in refused.reason


@pytest.mark.parametrize(
    ("message", "lines", "reason"),
    [
        (Message("alerts", 0, 0, b"", b"{}\n" * (MAX_BATCH_ROWS + 1)), MAX_BATCH_ROWS + 1, "more than 131072"),
        (Message("alerts", 0, 0, b"", b"x" * (1 << 20) + b"\n"), 1, "more than 524288"),
        (Message("alerts", 0, 0, b"", b"", problem="cannot be decompressed"), 0, "cannot be decompressed"),
    ],
)
def test_a_message_larger_than_ours_has_no_errors(message: Message, lines: int, reason: str) -> None:
    rows, refused = _decoded(message)
    assert (rows, refused.lines) == ([], lines)
    assert reason in refused.reason
