"""What a report says: intervals, winners, thresholds, and the check of all its numbers."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from services.bench.evidence.folder import Evidence
from services.bench.evidence.histograms import Histogram, rounded
from services.bench.evidence.records import About, Pace, Table, Tables, Trial
from services.bench.evidence.surroundings import masked
from services.bench.main import main
from services.bench.plan.cells import ControlCell, FaultCell, ReadCell, WriteCell
from services.bench.plan.loading import parsed
from services.bench.plan.schema import Control, Limits
from services.bench.report import html, judging, markdown
from services.bench.report.breaking import first_to_break
from services.bench.report.diff import diff
from services.bench.report.numbers import summary
from services.bench.report.publishing import publish, recheck
from services.bench.report.statistics import Estimate, Sampled, mean, needed
from services.bench.report.summary import ReadCondition
from services.core.errors import Invalid

PLAN = """\
name: small
about: A plan for tests.
seed: 7
repeats: 3
budget_minutes: 5
stores: [postgres, clickhouse, lake]
read: {rows: [100], queries: [count]}
write: {rates: [600], seconds: 1}
knee: {start: 600, seconds: 1, hold_seconds: 1}
faults: {components: [kafka]}
"""


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    return Evidence.create(tmp_path / "run", about("a machine"), PLAN)


def about(machine: str) -> About:
    return About(
        "bench-test", "small", "2026-01-01T00:00:00+00:00", {}, {"cpu": machine, "cores": "2", "memory": "1"}, {}, {}
    )


def spread(median: float, count: int = 40, seed: int = 1) -> list[int]:
    """Microseconds around a median in milliseconds."""
    return [round(value) for value in np.random.default_rng(seed).normal(median * 1e3, median * 50, count)]


def add_reads(
    evidence: Evidence, store: str, repeats: Sequence[Sequence[int]], late_ms: float = 0.0, rows: int = 100
) -> None:
    for repeat, responses in enumerate(repeats):
        count = len(responses)
        reads: Table = {
            "due": list(range(count)),
            "response": list(responses),
            "store": [each // 2 for each in responses],
            "method": ["scan"] * count,
            "digest": ["same"] * count,
            "problem": [""] * count,
        }
        cell = ReadCell(rows, "as-written", "scan", "count", None, store)
        trial = Trial(evidence.next_number(), cell, repeat, "", 1.0, Pace(count, count, 0, late_ms))
        evidence.add(trial, {"reads": reads, "files": {"files": [3] * count, "files_total": [3] * count}})


def only(evidence: Evidence) -> ReadCondition:
    [condition] = summary(evidence).reads
    return condition


def test_a_store_wins_where_its_interval_lies_below_all_others(evidence: Evidence) -> None:
    add_reads(evidence, "postgres", [spread(90, seed=seed) for seed in range(3)])
    add_reads(evidence, "clickhouse", [spread(10, seed=seed) for seed in range(3)])
    add_reads(evidence, "lake", [spread(30, seed=seed) for seed in range(3)])
    condition = only(evidence)
    assert condition.winner == "clickhouse"
    assert condition.verdict.startswith("ClickHouse counts all rows ")
    assert "faster than PostgreSQL" in condition.verdict
    ratio = Sampled([spread(10, seed=1)] * 3, 7).ratio(Sampled([spread(90, seed=2)] * 3, 7))
    assert ratio is not None
    assert ratio.low < 9 < ratio.high


def test_a_crossover_is_a_finding(evidence: Evidence) -> None:
    for rows, postgres, clickhouse in ((100, 10, 20), (1000, 100, 30)):
        add_reads(evidence, "postgres", [spread(postgres, seed=seed) for seed in range(3)], rows=rows)
        add_reads(evidence, "clickhouse", [spread(clickhouse, seed=seed) for seed in range(3)], rows=rows)
    assert (
        summary(evidence).findings[0]
        == "1,000 rows, count: ClickHouse counts all rows fastest; at 100 rows it was PostgreSQL."
    )


def test_overlapping_intervals_are_not_separable(evidence: Evidence) -> None:
    add_reads(evidence, "postgres", [spread(10, seed=seed) for seed in range(3)])
    add_reads(evidence, "clickhouse", [spread(10.1, seed=seed + 9) for seed in range(3)])
    condition = only(evidence)
    assert condition.winner == ""
    assert condition.verdict.startswith("not separable: ")


def test_a_repeat_that_disagrees_prevents_a_winner(evidence: Evidence) -> None:
    add_reads(evidence, "postgres", [spread(10), spread(10), spread(30)])
    add_reads(evidence, "clickhouse", [spread(20), spread(20), spread(20)])
    assert only(evidence).winner == ""


def test_two_repeats_are_too_few_for_a_winner(evidence: Evidence) -> None:
    add_reads(evidence, "postgres", [spread(90)] * 2)
    add_reads(evidence, "clickhouse", [spread(10)] * 2)
    assert only(evidence).verdict == "not separable: 2 repeats, and a winner needs 3"


def test_a_void_cell_is_not_ranked_and_named_with_its_reason(evidence: Evidence) -> None:
    add_reads(evidence, "postgres", [spread(90)] * 3)
    add_reads(evidence, "clickhouse", [spread(10)] * 3, late_ms=251)
    found = summary(evidence)
    assert found.reads[0].winner == ""
    [void] = found.voids
    assert void.key == "read/100/as-written/scan/count/alone/clickhouse"
    assert void.reasons[0] == "repeats 1, 2, 3: the driver fell behind: it sent a request 251 ms late (limit 250)"
    for page in (markdown.page(found), html.page(found)):
        assert "the driver fell behind" in page


@pytest.mark.parametrize(("q", "samples"), [(0.5, 20), (0.9, 100), (0.99, 1000), (0.999, 10_000)])
def test_a_quantile_needs_ten_samples_beyond_it(q: float, samples: int) -> None:
    assert needed(q) == samples
    assert Sampled([list(range(1, samples))], 1).quantile(q) is None
    assert Sampled([list(range(1, samples + 1))], 1).quantile(q) is not None


def test_histograms_are_merged_and_not_averaged() -> None:
    fast, slow = [1000] * 90, [100_000] * 10
    found = Sampled([fast, slow], 1).quantile(0.9)
    assert found is not None
    assert found.value == 1000  # the mean of the two quantiles would be 50,500


def test_an_interval_covers_the_true_value_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(40):
        samples = np.random.default_rng(trial).exponential(10_000, (3, 100)).astype(int)
        found = Sampled(samples.tolist(), trial).quantile(0.5)
        assert found is not None
        covered += found.low <= 10_000 * np.log(2) <= found.high
    assert covered >= 33  # of 40; by chance alone fewer than one time in a hundred


def test_the_same_seed_gives_the_same_interval() -> None:
    samples = [spread(10, seed=seed) for seed in range(3)]
    assert Sampled(samples, 3).quantile(0.5) == Sampled(samples, 3).quantile(0.5)
    assert mean([1.0, 2.0, 3.0], 3) == mean([1.0, 2.0, 3.0], 3)


def test_values_are_rounded_as_a_histogram_does() -> None:
    values = [1, 2, 2047, 2048, 2049, 5000, 123_456_789, 10**12]
    assert rounded(values).tolist() == [Histogram([value]).quantile(0.5) for value in values]


def test_recheck_finds_a_number_that_was_changed_and_a_sample_that_was_changed(evidence: Evidence) -> None:
    add_reads(evidence, "postgres", [spread(90)] * 3)
    publish(evidence)
    assert recheck(evidence) == []
    report = evidence.folder / "report.json"
    honest = report.read_text()
    report.write_text(honest.replace('"samples": 120', '"samples": 121'))
    assert recheck(evidence) == ["reads[0].results[0].samples: the report says 121, the evidence 120"]
    report.write_text(honest)
    samples = evidence.folder / "samples" / "0001.json.gz"
    samples.write_bytes((evidence.folder / "samples" / "0002.json.gz").read_bytes() + b"\0")
    assert recheck(evidence) == ["samples/0001.json.gz was altered after it was written"]
    samples.unlink()
    assert recheck(evidence) == ["samples/0001.json.gz is missing"]


def add_arm(evidence: Evidence, arm: Control, values: Sequence[float]) -> None:
    for repeat, value in enumerate(values):
        trial = Trial(evidence.next_number(), ControlCell(arm), repeat, "", 1.0, Pace(0, 0, 0, 0.0))
        evidence.add(msgspec.structs.replace(trial, values={"rows/s": value, "MB/s": 1.0}), {})


def add_rate(evidence: Evidence, cell: WriteCell, acked: Sequence[int]) -> None:
    """`acked`: requests of 10 rows in one second, for each repeat."""
    for repeat, count in enumerate(acked):
        trial = Trial(evidence.next_number(), cell, repeat, "", 1.0, Pace(count, count, 0, 0.0))
        evidence.add(trial, {"writes": writes([(0, 5, "acked")] * count), "polls": polls()})


def test_a_rate_is_a_share_of_each_arm_that_was_measured(evidence: Evidence) -> None:
    add_arm(evidence, "copy", [1000.0] * 3)
    add_arm(evidence, "kafka", [2000.0, 4000.0, 6000.0])
    add_arm(evidence, "row-insert", [10.0])
    add_rate(evidence, WriteCell(6000), [10, 10, 10])
    add_rate(evidence, WriteCell(6000, "hold"), [10, 10, 10])
    publish(evidence)
    found = summary(evidence)
    ladder, hold = found.writes
    assert ladder.shares["copy"] == Estimate(0.1, 0.1, 0.1)
    assert list(ladder.shares) == ["copy", "kafka"]
    kafka = hold.shares["kafka"]
    assert kafka == Estimate(0.025, round(100 / 6000, 6), 0.05)
    assert found.knee is not None
    assert found.knee.shares == hold.shares
    assert "Of the control arms, the knee is 10 % of copy, 1.7 to 5 % of kafka." in found.findings
    text = markdown.page(found)
    assert "| rows/min | sustained, rows/s | of copy, % | of kafka, % |" in text
    assert "| hold 6,000 | 100 | 10 | 2.5 (1.67 to 5) |" in text
    assert recheck(evidence) == []
    report = evidence.folder / "report.json"
    published = json.loads(report.read_text())
    published["writes"][0]["shares"]["copy"]["value"] = 0.9
    report.write_text(json.dumps(published))
    assert recheck(evidence) == ["writes[0].shares.copy.value: the report says 0.9, the evidence 0.1"]


def test_without_arms_a_rate_has_no_shares(evidence: Evidence) -> None:
    add_rate(evidence, WriteCell(6000), [10, 10, 10])
    found = summary(evidence)
    assert found.writes[0].shares == {}
    assert "control arms" not in markdown.page(found)


def test_a_diff_says_what_changed_and_what_else_differs(evidence: Evidence, tmp_path: Path) -> None:
    second = Evidence.create(tmp_path / "second", about("another machine"), PLAN)
    for store, before, after in (("postgres", 10, 20), ("clickhouse", 10, 10)):
        add_reads(evidence, store, [spread(before, seed=seed) for seed in range(3)])
        add_reads(second, store, [spread(after, seed=seed + 5) for seed in range(3)])
    add_reads(second, "lake", [spread(5)] * 3)
    found = diff(evidence, second)
    assert [(change.key.rpartition("/")[2], change.verdict) for change in found.changes] == [
        ("postgres", "slower"),
        ("clickhouse", "not separable"),
    ]
    assert found.changes[0].ratio.low < 2 < found.changes[0].ratio.high
    assert found.only_second == ["read/100/as-written/scan/count/alone/lake"]
    assert found.surroundings == ["machine, cpu: a machine -> another machine"]


def test_the_commands_recheck_and_diff_say_what_they_find(evidence: Evidence) -> None:
    add_reads(evidence, "postgres", [spread(90)] * 3)
    publish(evidence)
    folder = str(evidence.folder)
    same = CliRunner().invoke(main, ["diff", folder, folder], catch_exceptions=False)
    assert "not separable" in same.output
    assert CliRunner().invoke(main, ["recheck", folder]).exit_code == 0
    report = evidence.folder / "report.json"
    report.write_text(report.read_text().replace('"samples": 120', '"samples": 121'))
    wrong = CliRunner().invoke(main, ["recheck", folder])
    assert wrong.exit_code == 1
    assert "the report says 121, the evidence 120" in wrong.output


def test_evidence_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no evidence of"):
        Evidence.open(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Invalid, match="is not empty"):
        Evidence.create(tmp_path, about(""), PLAN)


def test_secrets_are_masked() -> None:
    assert masked(
        {
            "LOGPIPE_TOKEN": "hush",
            "LOGPIPE_POSTGRES_URL": "postgresql://me:hu@sh@host/db?passfile=x&password=hush",
            "LOGPIPE_KAFKA_PASSWORD": "hush",
            "LOGPIPE_QUERY_URL": "http://host:1",
        }
    ) == {
        "LOGPIPE_KAFKA_PASSWORD": "***",
        "LOGPIPE_POSTGRES_URL": "postgresql://me:***@host/db?passfile=x&password=***",
        "LOGPIPE_QUERY_URL": "http://host:1",
        "LOGPIPE_TOKEN": "***",
    }


def writes(requests: Sequence[tuple[int, int, str]]) -> Table:
    """Requests of 10 rows: due in seconds, response in milliseconds, outcome. Request N has batch N + 1."""
    return {
        "due": [due * 1_000_000 for due, _, _ in requests],
        "response": [response * 1000 for _, response, _ in requests],
        "rows": [10] * len(requests),
        "bytes": [1000] * len(requests),
        "outcome": [outcome for _, _, outcome in requests],
        "batch": [number + 1 for number in range(len(requests))],
        "problem": ["" if outcome == "acked" else "503: full" for _, _, outcome in requests],
    }


def polls(*seen: tuple[float, int]) -> Table:
    return {
        "store": ["lake"] * len(seen),
        "at": [round(at * 1e6) for at, _ in seen],
        "as_of": [as_of for _, as_of in seen],
    }


def test_freshness_counts_from_the_intended_time_to_the_query_that_reads_the_rows() -> None:
    tables: Tables = {
        "writes": writes([(0, 5, "acked"), (1, 5, "acked"), (2, 5, "refused"), (3, 5, "acked")]),
        "polls": polls((0.5, 0), (1.5, 2), (2.5, 1), (4.0, 2)),
    }
    assert judging.freshness(tables, "lake") == [(0, 1_500_000), (1_000_000, 500_000)]
    assert judging.freshness(tables, "postgres") == []


def test_a_lag_that_grows_means_that_a_long_rate_is_not_held(evidence: Evidence) -> None:
    requests = [(second, 5, "acked") for second in range(40)]
    tables: Tables = {"writes": writes(requests), "polls": polls(*((1.5 * at + 0.1, at + 1) for at in range(40)))}
    cell = WriteCell(600)
    for seconds, expected in ((40.0, ["lake fell behind by 0.50 s in each second (limit 0.05)"]), (20.0, [])):
        trial = Trial(1, cell, 0, "", seconds, Pace(40, 40, 0, 0.0), drained={"lake": 1.0})
        assert judging.unheld(trial, tables, _limits(evidence)) == expected


def _limits(evidence: Evidence) -> Limits:
    return parsed(evidence.plan, "plan.yaml").limits


def test_the_component_that_passed_its_limit_first_is_named() -> None:
    signals: Table = {
        "at": [5_000_000, 10_000_000, 15_000_000],
        "component": ["Kafka", "ClickHouse", "Kafka"],
        "what": ["waiting batches", "waiting messages", "waiting batches"],
        "value": [10.0, 6000.0, 5000.0],
        "limit": [1000.0, 5000.0, 1000.0],
    }
    trial = Trial(1, WriteCell(600), 0, "", 1.0, Pace(0, 0, 0, 0.0))
    told = first_to_break(["it was slow"], [(trial, {"signals": signals})])
    assert told == "ClickHouse, 10 s after the start: waiting messages 6,000 (limit 5,000). it was slow"


def test_a_fault_is_recovered_from_when_nothing_takes_long_any_more(evidence: Evidence) -> None:
    requests = [(0, 5, "acked"), (1, 6, "acked"), (2, 3000, "acked"), (3, 2000, "acked"), (4, 7, "acked")]
    tables: Tables = {"writes": writes(requests), "polls": polls((0.1, 1), (1.1, 2), (9, 5))}
    trial = Trial(
        *(1, FaultCell("kafka"), 0, "", 5.0, Pace(5, 5, 0, 0.0)),
        stored={"lake": 50},
        drained={"lake": 4.0},
        fault_at=1_500_000,
    )
    evidence.add(trial, tables)
    [fault] = summary(evidence).faults
    assert fault.recovered == [2.5]
    assert fault.visible == {"lake": [None]}
    assert fault.void == []
    assert [second.slowest_ms for second in fault.timeline] == [5.0, 6.0, 3000.0, 2000.0, 7.0]


def test_a_page_has_all_inside_and_no_address_of_another_server(evidence: Evidence) -> None:
    add_reads(evidence, "postgres", [spread(90)] * 3)
    page = publish(evidence).read_text()
    assert "{{" not in page
    assert "Permission is hereby granted, free of charge" in page
    assert not [word for word in ('src="', "@import", "fetch(", 'href="') if word in page]
