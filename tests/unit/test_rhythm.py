"""Rows of past days follow the rhythm of a week."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from services import datasets
from services.generator import invention
from services.generator.rhythm import MINUTES, Rhythm
from services.generator.synthesis import Synthesizer

END = datetime(2026, 3, 16, 3, 0, tzinfo=UTC)
FOOTPRINTS = datasets.find("footprints")


def microseconds(time: datetime) -> int:
    return round(time.timestamp() * 1_000_000)


@pytest.mark.parametrize("days", [0.01, 1, 7, 30])
def test_times_are_the_inverse_of_progress(days: float) -> None:
    rhythm = Rhythm([1 + minute % 97 for minute in range(MINUTES)])
    ends = [microseconds(END - timedelta(days=days)), microseconds(END)]
    assert (
        np.abs(rhythm.times(np.array([rhythm.progress(end) for end in ends])) - ends).max() < 100
    )  # a microsecond of a quiet minute's progress


def test_a_week_progresses_as_far_as_time_does() -> None:
    rhythm = Rhythm([1.0] * (MINUTES - 1) + [5.0])
    week = 7 * 86_400 * 1_000_000
    assert rhythm.progress(microseconds(END) + week) - rhythm.progress(microseconds(END)) == week


def test_a_busy_minute_has_its_share() -> None:
    """The third minute of the week, in UTC, is as busy as 100 others."""
    rhythm = Rhythm([100.0 if minute == 2 else 1.0 for minute in range(MINUTES)])
    monday = datetime(2026, 3, 9, tzinfo=UTC)
    inside = [rhythm.progress(microseconds(monday + timedelta(minutes=minute))) for minute in (2, 3)]
    share = (inside[1] - inside[0]) / (7 * 86_400 * 1_000_000)
    assert share == pytest.approx(100 / (MINUTES + 99))


@pytest.mark.parametrize("weights", [[1.0] * 10, [0.0] * MINUTES])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights above 0"):
        Rhythm(weights)


def test_the_traffic_of_two_weeks() -> None:
    """It ends at the wanted time, is busy in the evening, quiet on Sunday, and has the burst of 01:15 in Seoul."""
    rhythm, rows = invention.rhythm_of(FOOTPRINTS), 50_000
    assert rhythm
    start = microseconds(END - timedelta(days=14))
    step = (rhythm.progress(microseconds(END)) - rhythm.progress(start)) / rows
    made = [json.loads(line) for line in Synthesizer(FOOTPRINTS, 1, start, step, rhythm=rhythm).lines(0, rows)]
    times = [datetime.fromisoformat(row["footprint_time"]).astimezone(ZoneInfo("Asia/Seoul")) for row in made]
    assert times == sorted(times)
    assert END - timedelta(minutes=5) < times[-1] < END
    hours, minutes = Counter(time.hour for time in times), Counter(time.strftime("%H:%M") for time in times)
    assert hours[20] > 10 * hours[3]
    days = Counter(time.weekday() for time in times)
    assert days[6] < 0.7 * days[2]
    assert {minute for minute, _ in minutes.most_common(2)} == {"01:15", "01:16"}
    assert {row["service"] for row in made if row["route"] == "/api/payments"} == {"payment-service"}
    routes = Counter(row["route"] for row in made)
    assert routes["/api/products/{id}"] == pytest.approx(2 * routes["/api/products"], rel=0.1)


def test_the_same_seed_gives_the_same_traffic() -> None:
    rhythm = invention.rhythm_of(FOOTPRINTS)
    first, second = (
        Synthesizer(FOOTPRINTS, 7, microseconds(END), 50.5, rhythm=rhythm).ndjson(start, 5000) for start in (0, 0)
    )
    assert first == second


def test_datasets_without_a_rhythm_have_none() -> None:
    assert invention.rhythm_of(datasets.find("logs")) is None
