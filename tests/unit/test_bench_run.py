"""Runs of small plans against a stack in this process. Every planted fault makes its cell void, with the reason."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from services.bench.evidence.folder import Evidence
from services.bench.evidence.records import About, Pace, Table, Tables, Trial
from services.bench.main import main
from services.bench.plan.cells import FaultCell, MixedCell, ReadCell, WriteCell
from services.bench.plan.loading import parsed
from services.bench.probes import mixed, write
from services.bench.probes.controls import machine
from services.bench.probes.searching import highest
from services.bench.probes.write import Offer
from services.bench.report.numbers import summary
from services.bench.report.publishing import publish, recheck
from services.bench.report.summary import ReadCondition, Summary, WriteResult
from services.bench.run import Run
from services.bench.target import local
from services.bench.target.settings import BenchSettings
from services.bench.target.urls import Target
from services.core.errors import Invalid, LogpipeError
from services.local import usage
from services.local.settings import LocalSettings
from services.local.supervision import State
from tests.bench_stack import FakeStack, fake_stack

HEAD = """\
name: small
about: A plan for tests.
seed: 7
repeats: 3
budget_minutes: 5
stores: [postgres, clickhouse, lake]
limits: {driver_late_ms: 5000, drain_seconds: 5.5}
"""
READ = "read: {rows: [100], queries: [group-by], samples: 7, warm_up: 1}\n"
WRITE = "write: {rates: [600_000], seconds: 0.05, warm_up_seconds: 0, request_rows: 100}\n"


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStack]:
    monkeypatch.setattr(write, "POLL_SECONDS", 0.005)
    with fake_stack() as made:
        yield made


def about() -> About:
    return About("bench-test", "small", "2026-01-01T00:00:00+00:00", {}, {}, {}, {})


def evidence(folder: Path, text: str) -> Evidence:
    return Evidence.open(folder) if folder.exists() else Evidence.create(folder, about(), text)


def measured(stack: FakeStack, folder: Path, text: str) -> Summary:
    kept = evidence(folder, text)
    Run(parsed(text, "small.yaml"), stack.target, kept, lambda _: None).execute()
    return summary(kept)


def test_a_run_of_an_honest_stack_has_no_void_cell_and_can_be_checked(stack: FakeStack, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    found = measured(stack, folder, HEAD + READ + WRITE)
    assert (found.status, found.voids) == ("", [])
    [condition] = found.reads
    assert [(each.store, each.repeats, each.samples) for each in condition.results] == [
        *(("postgres", 3, 21), ("clickhouse", 3, 21), ("lake", 3, 21))
    ]
    [rate] = found.writes
    assert rate.held
    assert (rate.accepted, rate.refused, rate.indeterminate) == (1500, 0, 0)
    assert set(rate.freshness) == {"postgres", "clickhouse", "lake"}
    kept = Evidence.open(folder)
    assert publish(kept).exists()
    assert recheck(kept) == []


def test_every_measured_query_asks_for_a_scan_without_the_cache(stack: FakeStack, tmp_path: Path) -> None:
    measured(stack, tmp_path / "run", HEAD + READ)
    grouped = [query for query in stack.queries if query.get("group_by") == "level"]
    assert len(grouped) == 3 * 3 * (7 + 1)
    assert {(query["method"], query["cache"]) for query in grouped} == {("scan", "off")}
    assert len({query["as_of"] for query in grouped}) == 1


def only(found: Summary) -> tuple[ReadCondition, dict[str, list[str]]]:
    [condition] = found.reads
    return condition, {result.store: result.void for result in condition.results}


def test_a_result_that_differs_makes_its_cell_void(stack: FakeStack, tmp_path: Path) -> None:
    stack.faults.differing.add("clickhouse")
    condition, void = only(measured(stack, tmp_path / "run", HEAD + READ))
    assert (void["postgres"], void["lake"]) == ([], [])
    assert void["clickhouse"][0] == "repeats 1, 2, 3: its result differs from the one that 2 of 3 stores return"
    assert condition.winner != "clickhouse"


def test_without_a_majority_all_results_are_in_doubt(stack: FakeStack, tmp_path: Path) -> None:
    stack.faults.differing.add("clickhouse")
    text = HEAD.replace(", lake]", "]") + READ
    condition, void = only(measured(stack, tmp_path / "run", text))
    assert all("no result has a majority" in reasons[0] for reasons in void.values())
    assert condition.winner == ""
    assert condition.verdict.startswith("no comparison")


def test_a_cached_reply_is_not_timed_as_a_scan(stack: FakeStack, tmp_path: Path) -> None:
    stack.faults.cached.add("hdfs")
    _, void = only(measured(stack, tmp_path / "run", HEAD + READ))
    assert void["lake"][0] == "repeats 1, 2, 3: replies were not by scan: 7 by cache"
    assert void["postgres"] == []


def test_a_cache_has_cells_of_its_own(stack: FakeStack, tmp_path: Path) -> None:
    found = measured(stack, tmp_path / "run", HEAD + READ.replace("samples", "methods: [cache], samples"))
    assert found.voids == []
    assert found.reads[0].method == "cache"
    assert found.findings[0].startswith("100 rows, group-by, from the cache:")


def test_failed_queries_make_a_cell_void(stack: FakeStack, tmp_path: Path) -> None:
    text = HEAD + READ
    folder = tmp_path / "run"
    kept = evidence(folder, text)
    run = Run(parsed(text, "small.yaml"), stack.target, kept, lambda event: plant(event))

    def plant(event: str) -> None:
        stack.faults.failing = {"hdfs"} if event.startswith("read/") else set()

    run.execute()
    _, void = only(summary(kept))
    assert void["lake"][0] == "repeats 1, 2, 3: 7 queries failed: query API: 503 planted"


def rate(found: Summary) -> WriteResult:
    [result] = found.writes
    return result


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"lost": {"clickhouse": 1}}, "clickhouse lost 1 of 500 accepted rows"),
        ({"doubled": {"hdfs": 2}}, "lake has 2 rows too many: some are doubled"),
    ],
)
def test_a_store_that_loses_or_doubles_a_row_makes_the_cell_void(
    stack: FakeStack, tmp_path: Path, faults: dict[str, Any], reason: str
) -> None:
    for name, value in faults.items():
        setattr(stack.faults, name, value)
    result = rate(measured(stack, tmp_path / "run", HEAD + WRITE))
    assert [void.partition(": ")[2] for void in result.void] == [reason]
    assert not result.held


def test_a_store_that_falls_behind_does_not_hold_the_rate(stack: FakeStack, tmp_path: Path) -> None:
    text = HEAD.replace("drain_seconds: 5.5", "drain_seconds: 0.02") + WRITE
    stack.faults.stuck.add("hdfs")
    trial, tables = write.measure(
        stack.target, parsed(text, "small.yaml"), WriteCell(600_000), 0, 1, Offer(600_000, 0.05, 100, "tag", 1)
    )
    assert trial.drained["lake"] is None
    kept = evidence(tmp_path / "run", text)
    kept.add(trial, tables)
    result = rate(summary(kept))
    assert result.drained["lake"] is None
    assert "repeat 1: lake did not have its rows 0.02 s after the last reply" in result.unheld
    assert result.freshness["lake"]["p50"] is None


def test_refused_rows_mean_that_a_rate_is_not_held(stack: FakeStack, tmp_path: Path) -> None:
    stack.faults.refusing = True
    result = rate(measured(stack, tmp_path / "run", HEAD + WRITE))
    assert (result.accepted, result.refused) == (0, 1500)
    assert "0 of 500 offered rows were accepted" in result.unheld[0]


def test_a_driver_that_falls_behind_makes_its_cell_void(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep

    async def slow(seconds: float) -> None:
        await sleep(seconds)
        time.sleep(0.02)  # noqa: ASYNC251 - a driver that something else keeps from running

    monkeypatch.setattr("services.bench.probes.pacing.asyncio.sleep", slow)
    text = HEAD.replace("driver_late_ms: 5000", "driver_late_ms: 15") + READ
    _, void = only(measured(stack, tmp_path / "run", text))
    assert all("the driver fell behind" in reasons[0] for reasons in void.values())


def test_a_dropped_request_makes_its_cell_void(stack: FakeStack, tmp_path: Path) -> None:
    stack.faults.delay["clickhouse"] = 1.0
    text = HEAD.replace("drain_seconds: 5.5", "in_flight: 4") + READ.replace("samples", "rates: [10.0], samples")
    condition, void = only(measured(stack, tmp_path / "run", text))
    assert "the driver dropped" in void["clickhouse"][0]
    assert void["postgres"] == []
    assert condition.winner != "clickhouse"


def test_a_run_that_was_cut_off_goes_on_where_it_ended(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, folder = HEAD + READ, tmp_path / "run"
    kept = evidence(folder, text)
    seen: list[str] = []

    def stop_after_four(event: str) -> None:
        seen.append(event)
        if len([each for each in seen if each.startswith("read/")]) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(parsed(text, "small.yaml"), stack.target, kept, stop_after_four).execute()
    partial = summary(kept)
    assert partial.status == "partial: the run was interrupted"
    assert "partial: the run was interrupted" in publish(kept).read_text()
    with (folder / "journal.ndjson").open("ab") as file:
        file.write(b'{"at":"cut o')
    before = len(stack.queries)
    found = measured(stack, folder, text)
    assert found.status == ""
    assert [result.samples for result in found.reads[0].results] == [21, 21, 21]
    again = [query for query in stack.queries[before:] if query.get("group_by") == "level"]
    assert len(again) == 5 * (7 + 1)


def test_a_run_ends_when_its_time_is_used_up(stack: FakeStack, tmp_path: Path) -> None:
    text, now = HEAD + READ, iter(range(0, 10_000, 100))
    kept = evidence(tmp_path / "run", text)
    Run(parsed(text, "small.yaml"), stack.target, kept, lambda _: None, lambda: float(next(now))).execute()
    found = summary(kept)
    assert found.status == "partial: the time budget of the plan was used up: 5 minutes"
    assert found.reads[0].verdict.startswith("no comparison")


def test_a_failed_run_says_why(stack: FakeStack, tmp_path: Path) -> None:
    stack.faults.refusing = True
    text = HEAD + READ
    kept = evidence(tmp_path / "run", text)
    with pytest.raises(LogpipeError, match="0 of 100 rows were accepted"):
        Run(parsed(text, "small.yaml"), stack.target, kept, lambda _: None).execute()
    assert summary(kept).status.startswith("partial: the run failed: 0 of 100 rows")


KNEE = "knee: {start: 60_000, precision: 1.5, seconds: 0.1, hold_seconds: 0.1}\n"


def test_the_knee_is_bracketed_bisected_and_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD + WRITE + KNEE
    offered: list[tuple[str, int]] = []

    def measure(
        target: Any, plan: Any, cell: WriteCell, repeat: int, number: int, offer: Offer
    ) -> tuple[Trial, Tables]:
        offered.append((cell.phase, cell.rate))
        return rate_trial(cell, repeat, number, held=cell.rate <= 200_000)

    monkeypatch.setattr(write, "measure", measure)
    monkeypatch.setattr(Run, "_settled", lambda _: 0)
    with fake_stack() as stack:
        found = measured(stack, tmp_path / "run", text)
    search = [rate for phase, rate in offered if phase == "search"]
    assert search == [60_000, 120_000, 240_000, 170_000]
    assert [rate for phase, rate in offered if phase == "hold"] == [170_000] * 3
    assert found.knee is not None
    assert (found.knee.rate, found.knee.beyond) == (170_000, 240_000)
    assert found.knee.broke_first.startswith("not known, because the run had no Prometheus. The rate was not held")


def rate_trial(cell: WriteCell, repeat: int, number: int, *, held: bool) -> tuple[Trial, Tables]:
    writes: Table = {
        "due": [0, 10],
        "response": [5, 5],
        "rows": [100, 100],
        "bytes": [9, 9],
        "outcome": ["acked", "acked" if held else "refused"],
        "batch": [1, 2],
        "problem": ["", "" if held else "503: full"],
    }
    polls: Table = {"store": ["postgres"], "at": [30], "as_of": [2]}
    trial = Trial(number, cell, repeat, "", 1.0, Pace(2, 2, 0, 0.0), drained={"postgres": 0.0})
    return trial, {"writes": writes, "polls": polls}


def test_cells_have_an_identity_that_reports_share() -> None:
    assert ReadCell(100, "compacted", "scan", "count", None, "lake").key == "read/100/compacted/scan/count/alone/lake"
    assert WriteCell(9000).key == "write/9000/ladder"


def test_the_command_runs_a_plan_and_writes_its_report(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "running", lambda settings: None)
    monkeypatch.setenv("LOGPIPE_QUERY_URL", stack.url)
    monkeypatch.setenv("LOGPIPE_INGEST_URL", stack.url)
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", "postgresql://logpipe:hush@127.0.0.1:1/logpipe")
    emptied = list[str]()
    monkeypatch.setattr(Target, "empty", lambda self, dataset: emptied.append(dataset))
    plan, folder = tmp_path / "small.yaml", tmp_path / "run"
    plan.write_text(HEAD.replace("repeats: 3", "repeats: 1") + READ)
    result = CliRunner().invoke(main, ["run", str(plan), "--into", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "rows of this run have a host that begins with bench-" in result.output
    assert {path.name for path in folder.iterdir()} == {
        *("plan.yaml", "run.json", "journal.ndjson", "trials", "samples", "report.json", "report.md", "report.html")
    }
    assert "hush" not in (folder / "run.json").read_text()
    assert "hush" not in (folder / "report.html").read_text()
    checked = CliRunner().invoke(main, ["recheck", str(folder)])
    assert checked.exit_code == 0, checked.output
    assert emptied == ["bench_logs"]
    again = CliRunner().invoke(main, ["run", str(plan)])
    assert again.exit_code == 1
    assert "postgres holds 100 rows of bench_logs: drop them by `logpipe maintain --once --empty" in again.output
    plan.write_text(plan.read_text() + "dataset: events\n")
    for option in ([], ["--beside-rows"]):
        absent = CliRunner().invoke(main, ["run", str(plan), *option])
        assert "the stack has no dataset events" in absent.output


def test_a_stack_that_is_not_up_is_said_how_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "running", lambda settings: None)
    monkeypatch.setenv("LOGPIPE_QUERY_URL", "http://127.0.0.1:9")
    result = CliRunner().invoke(main, ["run", "smoke", "--into", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "start the stack by `logpipe up`" in result.output
    assert not (tmp_path / "run").exists()


K6 = """\
#!/usr/bin/env python3
# A k6 that answers in time up to 8 requests a second.
import json, os, sys
points = next(word for word in sys.argv if word.startswith("--out=json=")).removeprefix("--out=json=")
rate, seconds = float(os.environ["RATE"]), float(os.environ["SECONDS"])
took = 5.0 if rate <= 8 else 900.0
with open(points, "w") as file:
    for number in range(int(rate * seconds)):
        time = f"2026-01-01T00:00:{number / rate:09.6f}000Z"
        data = {"time": time, "value": took, "tags": {"code": "200", "by": os.environ.get("BY", "scan")}}
        file.write(json.dumps({"type": "Point", "metric": "answered", "data": data}) + "\\n")
        file.write(json.dumps({"type": "Point", "metric": "checks", "data": data}) + "\\n")
with open(os.environ["SUMMARY"], "w") as file:
    json.dump({"metrics": {"dropped_iterations": {"values": {"count": int(os.environ.get("DROPPED", 0))}}}}, file)
"""
LOAD = "load: {scenarios: [simple], start: 3.0, seconds: 10, hold_seconds: 10, slo_ms: 100, rows: 1}\n"


@pytest.fixture
def with_k6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "k6"
    program.parent.mkdir()
    program.write_text(K6)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("with_k6")
def test_the_highest_rate_that_holds_the_objective_is_searched_and_held(stack: FakeStack, tmp_path: Path) -> None:
    text = HEAD.replace("stores: [postgres, clickhouse, lake]", "stores: [postgres]") + LOAD
    found = measured(stack, tmp_path / "run", text)
    [load] = found.loads
    assert (load.rate, load.beyond) == (7.14, 8.49)
    assert load.missed == ["repeat 1: 0 of 84 requests were answered within 100 ms (limit 95%)"]
    assert load.samples == 3 * 71
    assert found.findings == ["k6, simple: PostgreSQL holds 7.14 requests/s, and did not hold 8.49."]


@pytest.mark.usefixtures("with_k6")
@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("DROPPED", "2", "the driver dropped 2 of 32 requests"),
        ("BY", "cache", "replies were not by scan: 30 by cache"),
    ],
)
def test_what_makes_a_load_of_k6_worthless_is_no_rate_that_is_held(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    text = HEAD.replace("stores: [postgres, clickhouse, lake]", "stores: [postgres]") + LOAD
    [load] = measured(stack, tmp_path / "run", text).loads
    assert load.rate == 0
    assert reason in load.missed[0]


def test_without_k6_the_rest_still_runs(stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = measured(stack, tmp_path / "run", HEAD + LOAD + READ)
    assert found.status == ""
    assert "how to install it" in found.notes[0]
    assert len(found.reads) == 1


def test_what_verify_finds_is_said_first(stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD.replace("repeats: 3", "repeats: 1") + WRITE
    monkeypatch.delenv("LOGPIPE_POSTGRES_URL", raising=False)
    unknown = measured(stack, tmp_path / "unknown", text)
    assert unknown.notes[0].startswith("The stores were not verified: the stores of the stack cannot be reached")
    for differences, status in (("", ""), ("lake: 1 missing", "verify found differences: lake: 1 missing")):
        monkeypatch.setattr(Target, "verify", lambda *_, found=differences: found)
        found = measured(stack, tmp_path / f"run{bool(differences)}", text)
        assert found.status == status


def test_a_control_arm_that_cannot_be_measured_stops_nothing(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOGPIPE_POSTGRES_URL", raising=False)
    monkeypatch.setattr(machine, "_BURN_SECONDS", 0.01)
    monkeypatch.setattr(machine, "_BLOCKS", 1)
    monkeypatch.setattr(machine, "_SYNCS", 1)
    found = measured(stack, tmp_path / "run", HEAD + "controls: [cores, copy, disk]\n" + READ)
    assert [(each.arm, list(each.values)) for each in found.controls] == [
        *(("cores", ["work of two burners, in times of one"]), ("disk", ["MB/s written", "fsyncs/s"]))
    ]
    assert [note for note in found.notes if "copy" in note] == found.notes
    assert len(found.notes) == 1
    assert len(found.reads) == 1


def test_too_little_disk_is_refused_before_the_start(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "running", lambda settings: None)
    monkeypatch.setattr(Target, "free_bytes", lambda self: 10**9)
    monkeypatch.setenv("LOGPIPE_QUERY_URL", stack.url)
    monkeypatch.setenv("LOGPIPE_INGEST_URL", stack.url)
    result = CliRunner().invoke(main, ["run", "scale", "--into", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "scale writes about 120,000,000 rows, which may take 60.0 GB, and 1.0 GB are free" in result.output
    assert stack.batch == 0


def test_what_a_program_uses_is_read_from_the_machine(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"x" * 100_000)
    assert usage.disk_bytes(tmp_path) >= 100_000
    assert usage.cpu_seconds(os.getpid()) > 0
    assert usage.cpu_seconds(2**22) == 0


def test_a_component_that_cannot_be_killed_is_refused_before_the_start(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "running", lambda settings: None)
    monkeypatch.setenv("LOGPIPE_QUERY_URL", stack.url)
    monkeypatch.setenv("LOGPIPE_INGEST_URL", stack.url)
    result = CliRunner().invoke(main, ["run", "faults", "--into", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "what runs and can be killed: none, because the stack is not one of this machine" in result.output


def test_a_component_is_killed_while_rows_come_in(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    monkeypatch.setattr(Target, "kill", lambda self, component: killed.append(component))
    text = HEAD + WRITE + KNEE + "faults: {components: [kafka], after_seconds: 0.02, seconds: 0.1}\n"
    plan = parsed(text, "small.yaml")
    offer = Offer(600_000, 0.1, 100, "tag", 1)
    trial, tables = mixed.measure_fault(stack.target, plan, FaultCell("kafka"), 0, 1, offer)
    assert killed == ["kafka"]
    assert trial.fault_at is not None
    kept = evidence(tmp_path / "run", text)
    kept.add(trial, tables)
    kept.add(msgspec.structs.replace(trial, number=2, repeat=1, drained={**trial.drained, "lake": None}), tables)
    [fault] = summary(kept).faults
    assert (fault.repeats, fault.accepted) == (2, 2000)
    assert fault.void == ["repeat 2: lake did not have its rows 5.5 s after the last reply"]


def test_reads_are_measured_while_rows_come_in(
    stack: FakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "LEAD_SECONDS", 0.01)
    text = HEAD + WRITE + KNEE + "mixed: {shares: [0.5], queries: [group-by], rate: 200.0, samples: 20}\n"
    cell = MixedCell(0.5, "group-by", "clickhouse")
    offer = Offer(600_000, 0.2, 100, "tag", 1)
    trial, tables = mixed.measure_mixed(stack.target, parsed(text, "small.yaml"), cell, 0, 1, offer)
    kept = evidence(tmp_path / "run", text)
    kept.add(trial, tables)
    [condition] = summary(kept).mixed
    [result] = condition.results
    assert (condition.share, result.samples, result.void) == (0.5, 20, [])


@pytest.mark.parametrize("limit", [500.0, 60.0, 0.5])
def test_a_search_ends_with_bounds_that_are_close(limit: float) -> None:
    offered: list[float] = []

    def is_held(rate: float) -> bool:
        offered.append(rate)
        return rate <= limit

    held, beyond = highest(60.0, 1.1, is_held)
    assert held <= limit < beyond
    assert beyond / held <= 1.1 if limit >= 60 else (held, beyond) == (0, 60)
    assert len(offered) == len(set(offered))


class RunningStack:
    """What a local target reads of a stack."""

    def __init__(self, *programs: str) -> None:
        self.settings = LocalSettings(stack=Path("stack"), ingest_port=1, query_port=2, local_prometheus_port=3)
        self.folder = Path("stack")
        self._programs = programs

    def states(self) -> dict[str, State]:
        return {name: State("RUNNING", 2**22, "") for name in self._programs}


def test_the_local_stack_is_measured_unless_another_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUERY", "INGEST", "PROMETHEUS"):
        monkeypatch.delenv(f"LOGPIPE_{name}_URL", raising=False)
    monkeypatch.setattr(local, "Stack", lambda settings: RunningStack())
    assert local.running(BenchSettings()) is None
    monkeypatch.setattr(local, "Stack", lambda settings: RunningStack("kafka", "prometheus"))
    with closing(local.running(BenchSettings()) or pytest.fail("no target")) as target:
        assert (target.ingest_url, target.query_url) == ("http://127.0.0.1:1", "http://127.0.0.1:2")
        assert target.prometheus_url == "http://127.0.0.1:3"
        assert target.components() == {"kafka", "prometheus"}
    assert local.running(BenchSettings(query_url="http://elsewhere:2")) is None
    with pytest.raises(Invalid, match="clickhouse does not run"):
        target.kill("clickhouse")
