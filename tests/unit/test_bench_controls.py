"""The control arms as far as no component is needed: their rows, and what Kafka's own tool says."""

import json
from pathlib import Path
from typing import get_args

import pytest

from services.bench.plan.loading import parsed, text_of
from services.bench.plan.schema import Control
from services.bench.probes import controls
from services.bench.probes.controls import kafka, rows, spark
from services.bench.report import shares
from services.bench.target import local, urls
from services.core.errors import NeedsOperator, StoreDown
from services.core.rows import RowCodec
from services.local.jars import KAFKA
from services.local.settings import LocalSettings

OUTPUT = """\
Reading payloads from: /tmp/payload
Number of records read: 80
812 records sent, 162.4 records/sec (11.72 MB/sec), 1200.5 ms avg latency, 1900.0 ms max latency.
2667 records sent, 812.345678 records/sec (58.61 MB/sec), 412.30 ms avg latency, 1900.00 ms max latency, \
400 ms 50th, 900 ms 95th, 1700 ms 99th, 1900 ms 99.9th.
"""


def test_the_result_of_the_tool_is_its_last_line() -> None:
    assert kafka.total(OUTPUT) == (2667, 812.345678)


def test_an_output_without_a_result_is_an_error() -> None:
    with pytest.raises(StoreDown, match="printed no result: Reading payloads"):
        kafka.total("".join(OUTPUT.splitlines(keepends=True)[:3]))


def test_a_properties_file_keeps_every_character() -> None:
    assert (
        kafka.properties({"a": r'password="x\\";', "b": "é😀"}) == 'a=password="x\\\\\\\\";\nb=\\u00e9\\ud83d\\ude00\n'
    )


def test_every_arm_of_a_plan_can_be_measured_and_every_arm_of_a_share_can_be_named() -> None:
    assert tuple(controls.ARMS) == get_args(Control)
    assert set(shares.ARMS) <= set(get_args(Control))


@pytest.mark.parametrize("name", ["write", "mixed"])
def test_a_shipped_plan_that_writes_measures_the_arms_of_the_shares(name: str) -> None:
    assert set(shares.ARMS) <= set(parsed(text_of(name), name).controls)


def test_rows_are_as_in_kafka() -> None:
    count = rows.REQUEST_ROWS + 5
    lines = rows.stored_lines(count).splitlines()
    decoded = [RowCodec(rows.dataset()).decode_line(line) for line in lines]
    assert len({row[0] for row in decoded}) == count
    assert len(rows.wire_lines(7)) == 7


def test_spark_reads_every_field_of_a_line() -> None:
    names = [column.split("`")[1] for column in spark.schema().split(", ")]
    assert set(json.loads(rows.stored_lines(1))) == set(names)


def test_messages_are_those_of_the_topic_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "_ROWS", 3000)
    values, count = kafka._messages(4)
    assert count == sum(value.count(b"\n") for value in values) == 3000
    assert not any(kafka._DELIMITER.encode() in value for value in values)


def test_the_tool_of_kafka_is_found_by_the_jars_and_then_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "java", lambda: "java")
    monkeypatch.setenv("LOGPIPE_CACHE", str(tmp_path / "jars"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NeedsOperator, match="not on the PATH"):
        local.producer_perf()
    script = tmp_path / "kafka-producer-perf-test.sh"
    script.touch(0o755)
    assert local.producer_perf() == urls.producer_perf_of_path() == (str(script),)
    KAFKA.folder.mkdir(parents=True)
    assert str(LocalSettings().cache) in " ".join(local.producer_perf())
