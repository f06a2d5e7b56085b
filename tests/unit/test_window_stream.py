"""The windows' query starts over, rather than go on with a checkpoint that is damaged or of another topic."""

from unittest.mock import MagicMock, Mock

import pytest

from services.core.errors import StoreDown
from services.datasets.logs import DATASET
from services.reports import windows as report_windows
from spark_jobs import windows
from spark_jobs.checkpoint import Checkpoint
from spark_jobs.settings import RealtimeSettings


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """In place of CheckpointFolder, which is called with where it lies."""
    made = Mock(uri="hdfs://checkpoint")
    monkeypatch.setattr(windows, "CheckpointFolder", Mock(return_value=made))
    monkeypatch.setattr(windows, "connect", MagicMock())
    monkeypatch.setattr(report_windows, "require", lambda connection: None)
    monkeypatch.setattr(windows, "counted", MagicMock())  # needs a session of Spark
    return made


def started(topic_id: str) -> windows.WindowStream:
    stream = windows.WindowStream(RealtimeSettings(), DATASET, Mock(**{"topic_id.return_value": topic_id}))
    stream.start(MagicMock())
    return stream


@pytest.mark.parametrize(
    ("found", "deletions"),
    [
        (None, 0),
        (Checkpoint("q", 3, {}), 0),
        (Checkpoint("q", 3, {}, frozenset({"commits/3"})), 1),
        (Checkpoint("", 3, {}, frozenset({"metadata"})), 1),
    ],
)
def test_a_damaged_checkpoint_is_deleted(folder: Mock, found: Checkpoint | None, deletions: int) -> None:
    folder.load.return_value = found
    started("topic-1")
    assert folder.delete.call_count == deletions


def test_a_checkpoint_is_of_one_topic(folder: Mock) -> None:
    folder.load.return_value = None
    for topic_id in ("topic-1", "topic-2"):
        started(topic_id)
    names = [call.args[1] for call in windows.CheckpointFolder.call_args_list]  # type: ignore[attr-defined]
    assert names == ["realtime-windows-topic-1", "realtime-windows-topic-2"]


def test_a_topic_created_again_under_the_query_ends_it(folder: Mock) -> None:
    folder.load.return_value = None
    stream = started("topic-1")
    stream._write(MagicMock(**{"collect.return_value": []}), 4)
    stream._topic.topic_id.return_value = "topic-2"  # type: ignore[attr-defined]
    with pytest.raises(StoreDown, match="was created again: the next start reads it"):
        stream._write(MagicMock(**{"collect.return_value": []}), 5)
