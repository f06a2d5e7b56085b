"""When the warm-up of Spark ends, and that its made-up messages are valid."""

from collections.abc import Iterator
from itertools import count, pairwise
from threading import Event
from time import monotonic
from unittest.mock import MagicMock, Mock

import pytest

from services import datasets
from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.kafka_value import batch_of_key
from services.core.rows import RowCodec
from spark_jobs import stream_to_lake, warm_up
from spark_jobs.settings import StreamToLakeSettings
from tests.waiting import until


@pytest.fixture
def warm_ups(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Mock]]:
    """Those that `run` makes, one a dataset; they need neither Spark nor HDFS, and never finish by themselves."""
    made = [Mock(rounds=[], **{"finished.return_value": False}) for _ in datasets.all_datasets()]
    monkeypatch.setattr(warm_up, "WarmUp", Mock(side_effect=made))
    yield made
    for each in made:
        each.delete_scratch.assert_called()


def run(limit: float, stop: Event | None = None) -> None:
    warm_up.run(MagicMock(), StreamToLakeSettings(), datasets.all_datasets(), limit, stop or Event())


def await_ended(warm_ups: list[Mock]) -> None:
    until(lambda: all(each.delete_scratch.call_count >= 2 for each in warm_ups))


@pytest.mark.parametrize(
    ("rounds", "ends"),
    [
        ([], False),
        ([9.0, 9.0, 9.0], False),  # too few to tell
        ([9.0, 5.0, 4.0, 3.0], False),
        ([9.0, 5.0, 4.0, 3.7], True),
        ([9.0, 5.0, 4.0, 6.0], True),
        ([2.0**-n for n in range(7)], False),
        ([2.0**-n for n in range(8)], True),  # as many as there are messages for
    ],
)
def test_rounds_end_when_they_hardly_get_faster(rounds: list[float], ends: bool) -> None:
    assert warm_up.settled(rounds) is ends


def test_the_wait_ends_when_the_rounds_have_finished() -> None:
    left = count(3, -1)
    warm_up.await_finish(lambda: next(left) <= 0, monotonic() + 60, Event())
    assert next(left) == -1


def test_the_wait_ends_at_its_deadline_by_the_clock() -> None:
    clock = Mock(side_effect=[10.0, 29.9, 30.0])
    warm_up.await_finish(lambda: False, 30.0, Event(), clock)
    assert clock.call_count == 3


def test_the_wait_ends_when_the_process_stops() -> None:
    stop = Event()
    stop.set()
    warm_up.await_finish(lambda: False, monotonic() + 60, stop)


def test_a_warm_up_that_never_settles_is_stopped_at_the_limit(warm_ups: list[Mock]) -> None:
    run(0.2)
    await_ended(warm_ups[:1])
    calls = [[call[0] for call in each.method_calls if call[0] != "finished"] for each in warm_ups]
    assert calls[0] == ["delete_scratch", "start", "stop", "delete_scratch"]
    assert all(other == ["delete_scratch"] for other in calls[1:])


def test_datasets_are_warmed_up_one_after_the_other(warm_ups: list[Mock]) -> None:
    for former, following in pairwise(warm_ups):
        former.finished.return_value = True
        following.start.side_effect = lambda spark, former=former: former.stop.assert_called_once()
    run(0.5)
    await_ended(warm_ups)


def test_a_round_that_still_runs_at_the_limit_ends_in_the_background(warm_ups: list[Mock]) -> None:
    ended = Event()
    warm_ups[0].stop.side_effect = lambda: ended.wait(10)
    started = monotonic()
    run(0.2)
    assert monotonic() - started < 5
    assert warm_ups[0].delete_scratch.call_count == 1
    ended.set()
    await_ended(warm_ups[:1])


def test_without_a_limit_only_the_scratch_of_a_crash_is_deleted(warm_ups: list[Mock]) -> None:
    run(0)
    for each in warm_ups:
        assert [call[0] for call in each.method_calls] == ["delete_scratch"]


def test_a_failure_does_not_end_the_start(warm_ups: list[Mock]) -> None:
    warm_ups[0].start.side_effect = StoreDown("lake", "unreachable")
    for each in warm_ups[1:]:
        each.finished.return_value = True
    warm_ups[1].stop.side_effect = StoreDown("lake", "unreachable")
    run(60)
    for each in warm_ups:
        each.stop.assert_called_once()
        assert each.delete_scratch.call_count == 2


def test_a_stream_goes_on_from_where_its_table_stands_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer may have gone on with the table during the warm-up."""
    calls = Mock(**{"stream.lag.return_value": 0})
    monkeypatch.setattr(stream_to_lake, "make_stream", lambda settings, dataset: calls.stream)
    monkeypatch.setattr(stream_to_lake, "warm_up", calls.warm_up)
    monkeypatch.setattr(stream_to_lake, "driver", calls.driver)
    monkeypatch.setattr(stream_to_lake, "topics", Mock())
    stream_to_lake.run(StreamToLakeSettings(), (datasets.find("logs"),))
    *_, prepare, warm = calls.driver.run.call_args.args
    calls.reset_mock()
    prepare()
    warm(Mock(), Event())
    names = [name for name, *_ in calls.mock_calls]
    assert names == ["stream.open", "stream.lag", "warm_up.run", "stream.open"]


@pytest.mark.parametrize("dataset", datasets.all_datasets(), ids=lambda dataset: dataset.name)
def test_made_up_messages_are_sound(dataset: Dataset) -> None:
    message = warm_up.made_up_message(dataset)
    lines = message.value.splitlines()
    assert message.key is not None
    assert batch_of_key(message.key) == 1
    assert int(message.headers["rows"]) == len(lines) == 250
    assert len({RowCodec(dataset).decode_line(line)[0] for line in lines}) == len(lines)
