"""When a streaming query may begin beside a table, where, and what is said when it may not."""

from unittest.mock import Mock

import pytest

from services.core.errors import NeedsOperator
from services.datasets.logs import DATASET
from services.lake.table import CLAIMED, LakePosition
from spark_jobs.checkpoint import Checkpoint, Offsets, starting_offsets, without_meaning
from spark_jobs.recovery import rebuild, resume
from spark_jobs.settings import StreamToLakeSettings
from spark_jobs.stream import LakeStream

BOUNDS = {0: (0, 50), 1: (5, 50)}
WHOLE = {0: (0, 50), 1: (0, 50)}
STORED = LakePosition("topic-1", {0: 20, 1: 30}, {0: 10, 1: 15}, "query-1", 7, generation="g")
RELEASED = LakePosition("topic-1", {0: 20, 1: 30})
ENDS = {6: {0: 10, 1: 15}, 7: {0: 20, 1: 30}, 8: {0: 21, 1: 30}}


def begin(position: LakePosition | None, checkpoint: Checkpoint | None, *, empty: bool = False) -> Offsets:
    return starting_offsets(DATASET, position, empty, checkpoint, "topic-1", WHOLE if empty else BOUNDS)


@pytest.mark.parametrize("position", [None, LakePosition("", {}, query=CLAIMED)], ids=["new", "claimed"])
def test_nothing_there_begins_at_the_topics_beginning(position: LakePosition | None) -> None:
    assert begin(position, None, empty=True) == {}
    with pytest.raises(
        NeedsOperator, match=r"partition 1 of .* up to offset 0, .* has only 5 to 50: messages were del"
    ):
        starting_offsets(DATASET, position, True, None, "topic-1", BOUNDS)


@pytest.mark.parametrize("position", [None, LakePosition("", {}, query=CLAIMED)], ids=["new", "claimed"])
def test_a_crash_before_the_first_commit_begins_again(position: LakePosition | None) -> None:
    assert begin(position, Checkpoint("query-1", -1, {0: {0: 5}}), empty=True) == {}


@pytest.mark.parametrize("committed", [7, 6], ids=["done", "crashed before it was marked"])
def test_a_checkpoint_that_agrees_goes_on(committed: int) -> None:
    assert begin(STORED, Checkpoint("query-1", committed, ENDS)) == {0: 20, 1: 30}


def test_a_released_table_begins_where_it_stands() -> None:
    assert begin(RELEASED, None) == {0: 20, 1: 30}
    assert begin(RELEASED, Checkpoint("query-2", -1, {})) == {0: 20, 1: 30}


@pytest.mark.parametrize(
    ("position", "checkpoint", "message"),
    [
        (STORED, None, "its checkpoint is missing"),
        (STORED, Checkpoint("query-2", 7, ENDS), "its checkpoint is of query query-2"),
        (STORED, Checkpoint("query-1", 5, ENDS), "micro-batch 5, and its table at micro-batch 7"),
        (STORED, Checkpoint("query-1", 8, ENDS), "micro-batch 8, and its table at micro-batch 7"),
        (STORED, Checkpoint("query-1", 7, {7: {0: 20, 1: 29}}), "micro-batch 7 ends at other offsets"),
        (RELEASED, Checkpoint("query-1", 7, ENDS), "knows of micro-batches up to 7"),
        (None, Checkpoint("query-1", 7, ENDS), "knows of micro-batches up to 7"),
        (None, None, "rows that no micro-batch of this job put there"),
        (STORED, Checkpoint("", 7, ENDS, frozenset({"metadata"})), "damaged: metadata cannot be read"),
        (STORED, Checkpoint("query-1", 7, ENDS, frozenset({"offsets/6"})), "damaged: offsets/6 cannot be read"),
        (
            STORED,
            Checkpoint("query-1", 7, {}, frozenset({"offsets/7", "offsets/8"})),
            "damaged: offsets/7 cannot be read",
        ),
        (STORED, Checkpoint("query-1", 7, ENDS, frozenset({"commits/6"})), "damaged: commits/6 cannot be read"),
        (STORED, Checkpoint("query-1", 8, ENDS, frozenset({"commits/8"})), "damaged: commits/8 cannot be read"),
        (RELEASED, Checkpoint("", 0, {}, frozenset({"metadata", "commits/0"})), "knows of micro-batches up to 0"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    position: LakePosition | None, checkpoint: Checkpoint | None, message: str
) -> None:
    empty = position is None and checkpoint is not None
    with pytest.raises(NeedsOperator, match=message) as refused:
        begin(position, checkpoint, empty=empty)
    assert "stream-to-lake --resume logs" in str(refused.value)
    assert "stream-to-lake --rebuild logs" in str(refused.value)


@pytest.mark.parametrize(
    ("position", "topic_id", "bounds", "message"),
    [
        (RELEASED, "topic-2", BOUNDS, "was deleted and created again"),
        (RELEASED, "topic-1", {0: (21, 50), 1: (5, 50)}, "partition 0 of .* up to offset 20, .* only 21 to 50"),
        (RELEASED, "topic-1", {0: (0, 19), 1: (5, 50)}, "partition 0 of .* up to offset 20, .* only 0 to 19"),
        (RELEASED, "topic-1", {0: (0, 50)}, "partition 1 of .* up to offset 30"),
    ],
)
def test_what_the_topic_no_longer_has_is_refused(
    position: LakePosition, topic_id: str, bounds: dict[int, tuple[int, int]], message: str
) -> None:
    with pytest.raises(NeedsOperator, match=message) as refused:
        starting_offsets(DATASET, position, False, None, topic_id, bounds)
    assert "names the rows that are missing" in str(refused.value)
    assert "`logpipe replay --store lake` writes them" in str(refused.value)
    assert "logpipe verify" in str(refused.value)


def test_an_emptied_table_takes_any_topic() -> None:
    emptied = LakePosition(topic_id="", offsets={})
    assert starting_offsets(DATASET, emptied, True, None, "topic-2", WHOLE) == {}


@pytest.mark.parametrize(
    ("topic_id", "bounds", "released"),
    [
        ("topic-1", BOUNDS, LakePosition("topic-1", {0: 20, 1: 30}, unfinished=STORED, generation="g")),
        ("topic-1", {0: (0, 50), 1: (16, 50)}, LakePosition("topic-1", {0: 20, 1: 30}, generation="g")),
        (
            "topic-1",
            {0: (25, 50), 1: (25, 28), 2: (3, 9)},
            LakePosition("topic-1", {0: 25, 1: 28, 2: 3}, generation="g"),
        ),
        ("topic-2", BOUNDS, LakePosition("topic-2", {0: 0, 1: 5}, generation="g")),
    ],
    ids=["all there", "the last batch is gone", "what comes next is gone", "another topic"],
)
def test_resuming_releases_the_table_where_the_topic_can_go_on(
    topic_id: str, bounds: dict[int, tuple[int, int]], released: LakePosition
) -> None:
    stream, handle = Mock(dataset=DATASET), Mock()
    stream.tables.rows.current_version.return_value = (handle, STORED)
    stream.checkpoint.load.return_value = Checkpoint("query-2", 7, ENDS)
    stream.topic.topic_id.return_value = topic_id
    stream.topic.bounds.return_value = bounds
    assert resume(stream) == released
    stream.checkpoint.delete.assert_called_once_with()
    stream.tables.release.assert_called_once_with(handle, released, {"query-1", "query-2"})
    assert starting_offsets(DATASET, released, False, None, topic_id, bounds) == released.offsets


def test_a_table_that_does_not_say_where_it_stands_cannot_be_resumed() -> None:
    stream, handle = Mock(dataset=DATASET), Mock()
    handle.file_uris.return_value = ["one"]
    stream.tables.rows.current_version.return_value = (handle, None)
    with pytest.raises(NeedsOperator, match="use --rebuild"):
        resume(stream)
    stream.checkpoint.delete.assert_not_called()


def test_rows_are_deleted_only_by_order() -> None:
    """The lake has no other source than the topic, and that may have lost them."""
    stream = Mock(dataset=DATASET)
    stream.tables.rows.position.return_value = STORED
    stream.tables.is_empty.return_value = False
    stream.checkpoint.load.return_value = None
    stream.topic.topic_id.return_value = "topic-2"
    stream.topic.bounds.return_value = BOUNDS
    with pytest.raises(NeedsOperator, match="add --yes"):
        rebuild(stream, give_up_rows=False)
    stream.checkpoint.delete.assert_not_called()
    rebuild(stream, give_up_rows=True)
    [(position, former)] = [call.args for call in stream.tables.empty.call_args_list]
    assert (position.topic_id, position.offsets, former) == ("topic-2", {0: 0, 1: 5}, {"query-1"})
    assert starting_offsets(DATASET, position, True, None, "topic-2", BOUNDS) == {0: 0, 1: 5}


@pytest.mark.parametrize("position", [None, LakePosition(topic_id="", offsets={})], ids=["new", "emptied"])
def test_an_empty_table_can_begin_where_the_topic_begins_now(position: LakePosition | None) -> None:
    stream, handle = Mock(dataset=DATASET), Mock()
    handle.file_uris.return_value = []
    stream.tables.rows.current_version.return_value = (handle, position)
    stream.checkpoint.load.return_value = None
    stream.topic.topic_id.return_value = "topic-1"
    stream.topic.bounds.return_value = BOUNDS
    assert resume(stream).offsets == {0: 0, 1: 5}


@pytest.mark.parametrize(
    ("position", "checkpoint", "removed"),
    [
        (STORED, None, []),
        (STORED, Checkpoint("query-1", 7, ENDS), []),
        (STORED, Checkpoint("query-1", 7, ENDS, frozenset({"offsets/8"})), ["offsets/8"]),
        (STORED, Checkpoint("query-1", 7, ENDS, frozenset({"offsets/8", "commits/7"})), ["commits/7", "offsets/8"]),
        (RELEASED, Checkpoint("", -1, {}, frozenset({"metadata", "offsets/0"})), ["metadata", "offsets/0"]),
        (None, Checkpoint("query-1", -1, {}, frozenset({"sources/0/0"})), ["sources/0/0"]),
    ],
)
def test_damage_that_loses_nothing_is_removed(
    position: LakePosition | None, checkpoint: Checkpoint | None, removed: list[str]
) -> None:
    if checkpoint:
        begin(position, checkpoint, empty=position is None)
    assert without_meaning(position, checkpoint) == removed


def test_a_topic_created_again_between_or_within_batches_ends_the_query() -> None:
    stream = LakeStream(StreamToLakeSettings(), DATASET, Mock())
    stream._topic_id = "topic-1"
    written: list[int] = []
    for ids, batches in ((["topic-2"], []), (["topic-1", "topic-2"], [8])):
        stream.topic.topic_id.side_effect = ids  # type: ignore[attr-defined]
        stream._write_micro_batch = lambda messages, micro_batch: written.append(micro_batch)  # type: ignore[method-assign]
        with pytest.raises(NeedsOperator, match=r"created again while micro-batch 8 was under way.*--resume logs"):
            stream._write(Mock(), 8)
        assert written == batches
    stream._query = Mock()
    with pytest.raises(NeedsOperator, match="created again"):
        stream.supervise(Mock())
