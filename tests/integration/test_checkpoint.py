"""What is read of a checkpoint on HDFS, whatever became of its files."""

from collections.abc import Iterator, Mapping

import pytest
from hdfs_native import Client, WriteOptions

from services.datasets.logs import DATASET
from services.runtime.settings import LakeSettings
from spark_jobs.checkpoint import Checkpoint, CheckpointFolder

FOLDER = "/lake/checkpoints/logs"
TOPIC = DATASET.topic.encode()
OFFSETS = b'v1\n{"batchWatermarkMs":0}\n{"' + TOPIC + b'":{"0":%d}}'
DONE = b'v1\n{"nextBatchWatermarkMs":0}'
WHOLE = {
    "metadata": b'{"id":"query-1"}',
    "sources/0/0": b'\0v1\n{"' + TOPIC + b'":{"0":0}}',
    **{f"offsets/{batch}": OFFSETS % (10 * batch) for batch in range(6, 9)},
    **{f"commits/{batch}": DONE for batch in range(5, 8)},
}
ENDS = {6: {0: 60}, 7: {0: 70}, 8: {0: 80}}


@pytest.fixture
def client(hdfs_url: str) -> Iterator[Client]:
    client = Client(hdfs_url)
    yield client
    client.delete(FOLDER, recursive=True)


@pytest.fixture
def folder(hdfs_url: str) -> CheckpointFolder:
    return CheckpointFolder(LakeSettings(hdfs_url=hdfs_url), DATASET.name, DATASET.topic)


def write(client: Client, files: Mapping[str, bytes | None]) -> None:
    for name, content in files.items():
        if content is not None:
            with client.create(f"{FOLDER}/{name}", WriteOptions(overwrite=True, create_parent=True)) as file:
                file.write(content)


def test_a_checkpoint(client: Client, folder: CheckpointFolder) -> None:
    assert folder.load() is None
    client.mkdirs(f"{FOLDER}/offsets", create_parent=True)
    assert folder.load() is None
    write(client, WHOLE)
    assert folder.load() == Checkpoint("query-1", 7, ENDS, frozenset())
    assert (folder.query(), folder.end(8), folder.end(-1)) == ("query-1", {0: 80}, {0: 0})
    folder.delete()
    assert folder.load() is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("metadata", "offsets/8") for content in (b"", b"\xff\x00\x81", b"null", b"{}")),
        ("metadata", None),
        ("metadata", WHOLE["metadata"][:-4]),
        ("offsets/7", OFFSETS[:-6]),
        ("offsets/7", b"v1\n"),
        ("offsets/7", b"v1\n{}\n" + b'{"another":{"0":1}}'),
        ("offsets/7", (OFFSETS % 70).replace(b"v1", b"v9")),
        ("commits/7", b""),
        ("commits/7", b"v1"),
        ("commits/7", b"\xff\x00"),
    ],
)
def test_damage_is_named(client: Client, folder: CheckpointFolder, name: str, content: bytes | None) -> None:
    write(client, WHOLE | {name: content})
    found = folder.load()
    assert found is not None
    assert found.damaged == {name}
    assert found.committed == 7
    assert found.ends == {batch: end for batch, end in ENDS.items() if name != f"offsets/{batch}"}
    folder.remove(found.damaged - {"metadata"})
    again = folder.load()
    assert again is not None
    assert again.damaged <= {"metadata"}


def test_the_start_of_a_query_without_batches_is_looked_at(client: Client, folder: CheckpointFolder) -> None:
    write(client, {"metadata": WHOLE["metadata"], "sources/0/0": b"\0v1"})
    assert folder.load() == Checkpoint("query-1", -1, {}, frozenset({"sources/0/0"}))
