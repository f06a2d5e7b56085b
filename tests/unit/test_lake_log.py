"""The transaction log of a table in the lake stays short, and the position in it survives the clean-up."""

import os
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from services.core.ids import first_id
from services.core.rows import RowCodec
from services.datasets.logs import DATASET
from services.lake import schema, table
from services.lake.embedded import EmbeddedReader
from services.lake.log import TableLog
from services.lake.maintenance import TableMaintenance
from services.lake.table import Table, rejects_uri, table_uri
from services.lake.writer import EmbeddedWriter
from services.runtime.settings import LakeSettings
from spark_jobs.schema import rejects_schema
from spark_jobs.tables import Tables
from tests import lake_tables

TODAY = 20_000
COMMITS = 60


@pytest.fixture
def settings(tmp_path: Path) -> LakeSettings:
    return LakeSettings(hdfs_url=tmp_path.as_uri())


def fill(settings: LakeSettings, commits: int) -> None:
    writer = EmbeddedWriter(settings)
    writer.prepare(DATASET)
    for batch in range(1, commits + 1):
        accepted = TODAY * lake_tables.DAY + batch
        lines = RowCodec(DATASET).encode([(first_id(batch), accepted, accepted, "INFO", "s", "", "m", "{}")])
        writer.write([lake_tables.block(DATASET, lines[0] + b"\n", batch - 1, TODAY)])


def log_files(uri: str) -> list[Path]:
    return sorted((Path(uri.removeprefix("file://")) / "_delta_log").iterdir())


def age(uri: str) -> None:
    """All of the log is older than the time that commits are kept."""
    for file in log_files(uri):
        os.utime(file, (time.time() - 7200,) * 2)


def test_the_log_is_cleaned_up_by_maintenance_and_not_by_the_writer(settings: LakeSettings) -> None:
    uri = table_uri(settings, DATASET.name)
    fill(settings, COMMITS)
    age(uri)
    fill(settings, 1)  # was there already: nothing is committed
    assert len(log_files(uri)) == COMMITS + 1
    assert not [file for file in log_files(uri) if "checkpoint" in file.name]
    reader = EmbeddedReader(settings)
    before = list(reader.counts(DATASET, 0, 999))
    log = TableLog(Table(uri))
    left = log.tidy()
    assert left == len(log_files(uri)) == 3, "the newest commit, its checkpoint, and where that is"
    assert log.tidy() is None
    for each in (reader, EmbeddedReader(settings)):
        assert each.position(DATASET).offsets == {0: COMMITS}
        assert list(each.counts(DATASET, 0, 999)) == before
    fill(settings, COMMITS + 1)
    assert EmbeddedReader(settings).position(DATASET).offsets == {0: COMMITS + 1}


def test_commits_of_the_last_hour_stay(settings: LakeSettings) -> None:
    uri = table_uri(settings, DATASET.name)
    fill(settings, COMMITS)
    TableLog(Table(uri)).tidy()
    assert len(log_files(uri)) == COMMITS + 1 + 2
    assert DeltaTable(uri, version=3).version() == 3


def test_a_commit_of_maintenance_does_not_take_the_position_with_it(settings: LakeSettings) -> None:
    """The table is quiet: the newest commit, the only one that is left, is not a writer's."""
    uri = table_uri(settings, DATASET.name)
    fill(settings, COMMITS)
    maintenance = TableMaintenance(settings, DATASET)
    maintenance.compact(date(1970, 1, 1) + timedelta(days=TODAY))
    age(uri)
    maintenance.tidy_logs()
    age(uri)
    TableMaintenance(settings, DATASET).tidy_logs()
    assert [file.suffix for file in log_files(uri)].count(".json") == 1
    assert EmbeddedReader(settings).position(DATASET).offsets == {0: COMMITS}


def test_a_table_of_an_older_release_gets_the_properties(settings: LakeSettings) -> None:
    uri = table_uri(settings, DATASET.name)
    wanted = schema.table_schema(DATASET)
    DeltaTable.create(uri, wanted, partition_by=["day"], configuration={"delta.checkpointInterval": "50"})
    for _ in range(2):
        schema.prepare(Table(uri), wanted, ["day"])
        found = DeltaTable(uri)
        assert found.metadata().configuration["delta.enableExpiredLogCleanup"] == "false"
        assert found.metadata().configuration["delta.checkpointInterval"] == "1000"
        assert found.version() == 1, "the second time changes nothing"


def test_checksums_of_expired_commits_leave_the_log(settings: LakeSettings) -> None:
    uri = table_uri(settings, DATASET.name)
    fill(settings, COMMITS)
    for version in range(COMMITS + 1):
        (log_files(uri)[0].parent / f"{version:020d}.crc").write_text("{}")
    age(uri)
    TableLog(Table(uri)).tidy()
    assert [file.name for file in log_files(uri) if file.suffix == ".crc"] == [f"{COMMITS:020d}.crc"]


def test_the_last_position_is_looked_for_in_a_bounded_number_of_commits(
    settings: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = table_uri(settings, DATASET.name)
    schema.prepare(Table(uri), schema.table_schema(DATASET), ["day"])
    for n in range(20):
        DeltaTable(uri).alter.set_table_properties({"delta.appendOnly": str(n % 2 == 0).lower()})
    read: list[int] = []
    history = DeltaTable.history

    def counted(self: DeltaTable, limit: int | None = None) -> list[dict[str, Any]]:
        found = history(self, limit)
        read.append(len(found))
        return found

    monkeypatch.setattr(table, "_HISTORY", (1, 4))
    monkeypatch.setattr(DeltaTable, "history", counted)
    assert EmbeddedReader(settings).position(DATASET).offsets == {}
    assert read == [1, 4]


def test_rejects_are_merged_and_leave_with_their_batches(settings: LakeSettings) -> None:
    Tables(settings, DATASET).prepare()
    uri = rejects_uri(settings, DATASET)
    for batch in (1, 2, 3, None):
        row = dict.fromkeys(pa.schema(rejects_schema()).names, None) | {"batch_id": batch, "rows": 1}
        write_deltalake(uri, pa.Table.from_pylist([row], pa.schema(rejects_schema())), mode="append")
    maintenance = TableMaintenance(settings, DATASET)
    assert maintenance.compact_rejects(5) == 0
    assert maintenance.compact_rejects(4) == 4
    assert maintenance.drop_rejects(3) == 2
    assert maintenance.drop_rejects(3) == 0
    assert [batch for batch, *_ in EmbeddedReader(settings).rejected(DATASET, 0, 9)] == [3]
    assert maintenance.vacuum(timedelta(0)) > 0
    assert len(DeltaTable(uri).file_uris()) == 1
