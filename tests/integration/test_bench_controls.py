"""Every control arm on real components, with few rows: each has a value, and leaves nothing behind."""

import os
from collections.abc import Iterator
from contextlib import closing
from typing import get_args
from unittest import mock

import pytest
from confluent_kafka.admin import AdminClient
from hdfs_native import Client

from services.bench.plan.cells import ControlCell
from services.bench.plan.schema import Control
from services.bench.probes import controls
from services.bench.probes.controls import clickhouse, hdfs, kafka, machine, postgres, spark
from services.bench.target.local import LocalTarget
from services.bench.target.settings import BenchSettings
from services.core.errors import NeedsOperator, StoreDown
from services.postgres.connection import connect
from services.stores.clickhouse.client import connect as connect_clickhouse
from tests.conftest import running

COMPONENTS = ("postgres", "kafka", "clickhouse", "namenode", "datanode", "spark-connect")
VALUES = {
    "cores": ["work of two burners, in times of one"],
    "disk": ["MB/s written", "fsyncs/s"],
    "kafka": ["rows/s", "MB/s"],
    "hdfs-put": ["MB/s"],
}
SMALL = {
    (machine, "_BURN_SECONDS"): 0.05,
    (machine, "_BLOCKS"): 2,
    (machine, "_SYNCS"): 2,
    (postgres, "_ROWS"): 500,
    (postgres, "_SINGLE_ROWS"): 20,
    (kafka, "_BYTES"): 1_000_000,
    (kafka, "_ROWS"): 2000,
    (clickhouse, "_ROWS"): 2500,
    (hdfs, "_BLOCKS"): 3,
    (spark, "_ROWS"): 2500,
    (spark, "_WARM_UP_ROWS"): 10,
}

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def target() -> Iterator[LocalTarget]:
    # The JVM's quick compiler only: Spark spends most of its first minute in the other one.
    quick = mock.patch.dict(os.environ, JAVA_TOOL_OPTIONS="-XX:TieredStopAtLevel=1")
    with quick, running(*COMPONENTS) as stack, closing(LocalTarget(BenchSettings(), stack)) as made:
        yield made


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for (module, name), value in SMALL.items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("arm", get_args(Control))
def test_an_arm_is_measured_and_leaves_nothing_behind(target: LocalTarget, arm: Control) -> None:
    before = left(target)
    trial, tables = controls.measure(target, ControlCell(arm), 0, 1)
    assert list(trial.values) == VALUES.get(arm, ["rows/s"])
    assert all(value > 0 for value in trial.values.values())
    assert tables == {}
    assert left(target) == before == set()


def left(target: LocalTarget) -> set[str]:
    """What an arm would leave: tables, topics, files."""
    with connect(target.postgres_url()) as connection:
        found = {row[0] for row in connection.execute("SELECT relname FROM pg_class WHERE relname LIKE 'bench%'")}
    with closing(connect_clickhouse(target.url("LOGPIPE_CLICKHOUSE_URL"), 60)) as client:
        found |= {row[0] for row in client.query("SELECT name FROM system.tables WHERE name LIKE 'bench%'").result_rows}
    admin = AdminClient({"bootstrap.servers": target.url("LOGPIPE_KAFKA_URL")})
    found |= {name for name in admin.list_topics(timeout=10).topics if name.startswith(kafka.PREFIX)}
    settings = hdfs.lake(target)
    listed = Client(settings.hdfs_url).list_status("/", recursive=True)
    return found | {status.path for status in listed if hdfs.PREFIX in status.path}


def test_an_arm_whose_component_is_unreachable_says_so(target: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = dict(target.environment())
    monkeypatch.setattr(target, "environment", lambda: urls)
    unreachable: dict[Control, tuple[str, str]] = {
        "kafka": ("LOGPIPE_KAFKA_URL", "127.0.0.1:1"),
        "clickhouse-file": ("LOGPIPE_CLICKHOUSE_URL", "http://127.0.0.1:1"),
        "hdfs-put": ("LOGPIPE_HDFS_URL", "hdfs://127.0.0.1:1"),
        "spark-batch": ("LOGPIPE_SPARK_CONNECT_URL", "sc://127.0.0.1:1"),
    }
    for arm, (variable, url) in unreachable.items():
        urls[variable] = url
        with pytest.raises(StoreDown):
            controls.ARMS[arm](target)
        del urls[variable]
        with pytest.raises(NeedsOperator, match=variable):
            controls.ARMS[arm](target)
