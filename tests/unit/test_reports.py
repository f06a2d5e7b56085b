"""What the reports make of counts: orders, totals, and what is called an anomaly."""

from datetime import date, timedelta
from typing import Any

import pytest

from spark_jobs import daily_report, service_analysis
from spark_jobs.daily_report import Count
from spark_jobs.service_analysis import Message, ServiceDay, anomalies

DAY = date(2026, 3, 1)


def measures(error_rate: float | None, p95_ms: float | None = None, rows: int = 1000) -> dict[str, Any]:
    return {"rows": rows, "error_rate": error_rate, "p95_ms": p95_ms}


def days(*rates: float | None) -> list[dict[str, Any]]:
    return [measures(rate) for rate in rates]


def found(this: dict[str, Any], before: list[dict[str, Any]]) -> list[str]:
    return [each["measure"] for each in anomalies(this, before)]


def test_a_rate_far_above_the_days_before_is_an_anomaly() -> None:
    (anomaly,) = anomalies(measures(0.2), days(0.04, 0.05, 0.06))
    assert anomaly == {
        "measure": "error_rate",
        "value": 0.2,
        "mean": pytest.approx(0.05),
        "sigma": pytest.approx(0.01),
        "threshold": pytest.approx(0.08),
    }


@pytest.mark.parametrize(
    ("this", "before"),
    [
        pytest.param(measures(0.0799), days(0.04, 0.05, 0.06), id="within three sigma"),
        pytest.param(measures(0.009), days(*[0.0] * 7), id="hardly more than a steady mean"),
        pytest.param(measures(0.5, rows=99), days(0.04, 0.05, 0.06), id="of few rows"),
        pytest.param(measures(0.5), days(0.04, None, 0.05, None), id="after few days"),
        pytest.param(measures(0.0), days(0.2, 0.2, 0.2), id="less than before"),
        pytest.param(measures(None, None), days(0.1, 0.1, 0.1), id="unknown"),
    ],
)
def test_what_is_no_anomaly(this: dict[str, Any], before: list[dict[str, Any]]) -> None:
    assert anomalies(this, before) == []


def test_a_steady_mean_must_be_passed_clearly() -> None:
    assert found(measures(0.011), days(*[0.0] * 7)) == ["error_rate"]
    steady = [measures(0.0, 100.0)] * 7
    assert found(measures(0.0, 109.0), steady) == []
    assert found(measures(0.0, 111.0), steady) == ["p95_ms"]


def test_the_most_come_first_and_ties_by_name() -> None:
    counts = [Count("INFO", "b", 3, 2), Count("ERROR", "a", 3, 1), Count("INFO", "a", 1, 1)]
    report = daily_report.assembled(counts, [])
    assert report["rows"] == 4
    assert report["error_rate"] == 0.25
    assert report["levels"] == [{"level": "INFO", "rows": 3}, {"level": "ERROR", "rows": 1}]
    assert [each["service"] for each in report["services"]] == ["a", "b"]
    assert report["services"][0] == {"service": "a", "rows": 2, "errors": 1, "error_rate": 0.5}
    assert [(each["hour"], each["rows"]) for each in report["hours"]] == [(3, 3), (1, 1)]
    assert [each["rows"] for each in report["totals"]] == [2, 1, 1]


def test_only_services_of_the_day_are_reported_and_all_together_always() -> None:
    before = DAY - timedelta(days=7)
    rows = service_analysis.assembled(
        DAY,
        before,
        [
            ServiceDay("a", DAY, 4, 1, [1.0, 2.0, 3.0]),
            ServiceDay("gone", before, 9, 9, None),
            ServiceDay(None, before, 9, 9, None),
            ServiceDay(None, DAY, 4, 1, [1.0, 2.0, 3.0]),
        ],
        [Message("a", "boom", 1), Message(None, "boom", 1)],
    )
    assert [row["service"] for row in rows] == [None, "a"]
    assert [row["messages"] for row in rows] == [[{"message": "boom", "rows": 1}]] * 2
    assert [row["p95_ms"] for row in rows] == [2.0, 2.0]
    assert [day["rows"] for day in rows[0]["trend"]] == [0, 0, 0, 0, 0, 0, 9]
    assert rows[1]["trend"][6]["error_rate"] is None


def test_a_day_that_retention_has_dropped_is_no_day_without_rows() -> None:
    kept = DAY - timedelta(days=2)
    (row,) = service_analysis.assembled(DAY, kept, [ServiceDay(None, DAY, 4, 1, None)], [])
    assert [day["day"] for day in row["trend"]] == [DAY - timedelta(days=1), kept]
