"""The checker finds one lost row, one doubled row and one altered byte; and says nothing of what is right."""

import json
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from itertools import starmap
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from services.core.dataset import Dataset
from services.core.dead_letter import DeadLettered
from services.core.errors import StoreDown
from services.core.ids import first_id
from services.core.ledger import Batch
from services.core.ports import Block, Message, OutgoingMessage
from services.core.rows import Row, RowCodec, checksum
from services.datasets.logs import DATASET
from services.ledger import dead_letter_index
from services.stores.memory import MemoryStore
from services.streams import dead_letters
from services.streams.memory import MemoryBroker, MemoryPartitionReader
from services.verify import reconcile, sample
from services.verify.dead_letters import DeadLetteredRows, DeadLetterLookup, LookUp
from services.verify.reconcile import Result, Selection
from services.verify.report import Report, as_json, show
from services.verify.service import repeated_if_floor_rises

CODEC = RowCodec(DATASET)
CREATED = 1_795_262_653_055_211
IDS = (3, 4, 7, 8, 9)
LAST = 9


def rows_of(batch_id: int, count: int = 4) -> list[Row]:
    start = first_id(batch_id)
    return [
        (start + n, CREATED + batch_id, 1_763_700_000_000_000 + n, "INFO", "api", "", f"message {n}", '{"n": 1.0}')
        for n in range(count)
    ]


ACCEPTED = {batch_id: rows_of(batch_id) for batch_id in IDS}
LEDGER = [Batch(b, 0, DATASET.name, len(r), checksum(CODEC.encode(r)), CREATED + b, ()) for b, r in ACCEPTED.items()]


class Store(MemoryStore):
    """Takes rows as a test wants to have them, one block a batch."""

    def put(self, batch_id: int, rows: Sequence[Row]) -> None:
        self.prepare(DATASET)
        lines = b"".join(line + b"\n" for line in CODEC.encode(rows))
        self.write([Block(DATASET, "topic", 0, batch_id, batch_id, CREATED // 86_400_000_000, len(rows), lines)])


def looked_up(dead_lettered: Mapping[int, DeadLetteredRows] | None) -> LookUp:
    return lambda batches: {b: dead for b, dead in (dead_lettered or {}).items() if b in batches}


def check(
    changed: Mapping[int, Sequence[Row]],
    dead_lettered: Mapping[int, DeadLetteredRows] | None = None,
    sample: int | None = None,
    seed: int = 1,
    first: int = 0,
) -> Result:
    """Reconcile a store that holds what was accepted, but for `changed`."""
    store = Store()
    for batch_id, rows in {**ACCEPTED, **changed}.items():
        store.put(batch_id, rows)
    steps: list[int] = []
    accepted = [batch for batch in LEDGER if batch.batch_id >= first]
    result = reconcile.reconcile(
        store, DATASET, iter(accepted), looked_up(dead_lettered), Selection(first, LAST, sample, seed), steps.append
    )
    assert sum(steps) == sum(batch.rows for batch in accepted)
    return result


def differences(result: Result) -> dict[str, int]:
    names = ("missing", "extra", "duplicated", "dead_lettered", "differing")
    return {name: getattr(result, name) for name in names if getattr(result, name)}


@pytest.fixture(params=[2_000_000, 8, 1], ids=["one chunk", "some chunks", "a chunk a batch"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "_CHUNK_ROWS", request.param)


pytestmark = pytest.mark.usefixtures("_chunks")


def test_all_is_well() -> None:
    result = check({})
    assert result.ok
    assert (result.batches, result.expected, result.found, result.compared) == (5, 20, 20, 5)
    assert not result.examples


def test_one_lost_row() -> None:
    result = check({7: ACCEPTED[7][1:]})
    assert differences(result) == {"missing": 1}
    assert not result.ok
    assert result.examples == ["batch 7 of 4 rows: 1 missing"]


def test_a_lost_batch() -> None:
    assert differences(check({9: []})) == {"missing": 4}


def test_one_duplicated_row() -> None:
    assert differences(check({4: [*ACCEPTED[4], ACCEPTED[4][2]]})) == {"duplicated": 1}


def test_a_loss_and_a_duplicate_do_not_cancel_out() -> None:
    assert differences(check({4: [*ACCEPTED[4][1:], ACCEPTED[4][2]]})) == {"missing": 1, "duplicated": 1}


@pytest.mark.parametrize("column", range(1, len(DATASET.column_names)))
def test_one_altered_byte(column: int) -> None:
    row = list(ACCEPTED[8][3])
    row[column] = row[column] + 1 if isinstance(row[column], int) else row[column] + " "
    result = check({8: [*ACCEPTED[8][:3], tuple(row)]})
    assert differences(result) == {"differing": 1}
    assert result.examples == ["batch 8 of 4 rows: contents differ"]


def test_a_row_too_many() -> None:
    assert differences(check({8: rows_of(8, 5)})) == {"extra": 1}


@pytest.mark.parametrize("batch_id", [1, 5])
def test_a_batch_the_ledger_does_not_know(batch_id: int) -> None:
    result = check({batch_id: rows_of(batch_id, 2)})
    assert differences(result) == {"extra": 2}
    assert result.examples == [f"batch {batch_id} is not in the ledger: 2 rows"]


def test_batches_beyond_the_point_are_left_alone() -> None:
    assert check({LAST + 1: rows_of(LAST + 1)}).ok


def test_a_dead_lettered_row_is_not_missing() -> None:
    for dead_lettered in (DeadLetteredRows(frozenset({first_id(7)})), DeadLetteredRows(unnamed=1)):
        result = check({7: ACCEPTED[7][1:]}, {7: dead_lettered})
        assert differences(result) == {"dead_lettered": 1}
        assert result.ok
        assert result.compared == 4


class LateDeadLetter(Store):
    """A store whose sink dead-letters the first row of batch 7 when the store is read."""

    def __init__(self) -> None:
        super().__init__()
        self.dead_lettered: dict[int, DeadLetteredRows] = {}
        for batch_id, rows in {**ACCEPTED, 7: ACCEPTED[7][1:]}.items():
            self.put(batch_id, rows)

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        self.dead_lettered[7] = DeadLetteredRows(frozenset({first_id(7)}))
        return super().counts(dataset, first, last)

    def rows_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[Row]:
        self.dead_lettered[7] = DeadLetteredRows(frozenset({first_id(7)}))
        return super().rows_of(dataset, batches)


def test_a_row_that_is_dead_lettered_during_the_verification_is_not_missing() -> None:
    store = LateDeadLetter()
    selection = Selection(0, LAST, None, 1)
    found = reconcile.reconcile(
        store, DATASET, iter(LEDGER), looked_up(store.dead_lettered), selection, lambda rows: None
    )
    assert differences(found) == {"dead_lettered": 1}


def test_a_row_that_is_dead_lettered_while_a_sample_is_read_is_not_missing() -> None:
    store = LateDeadLetter()
    found = sample.reconcile(store, DATASET, LEDGER, looked_up(store.dead_lettered), lambda rows: None)
    assert differences(found) == {"dead_lettered": 1}


def test_a_dead_lettered_row_that_was_stored_all_the_same() -> None:
    for dead_lettered in (DeadLetteredRows(frozenset({first_id(7)})), DeadLetteredRows(unnamed=1)):
        result = check({}, {7: dead_lettered})
        assert differences(result) == {"dead_lettered": 1, "extra": 1}
        assert result.examples == ["batch 7 of 4 rows: 1 extra"]


def test_a_dead_lettered_row_that_was_stored_does_not_stand_for_one_that_is_lost() -> None:
    dead_lettered = {4: DeadLetteredRows(frozenset({first_id(4)})), 7: DeadLetteredRows(frozenset({first_id(7) + 2}))}
    result = check({7: ACCEPTED[7][1:], 4: ACCEPTED[4][1:]}, dead_lettered)
    assert differences(result) == {"dead_lettered": 2, "missing": 1, "extra": 1}
    assert result.examples == ["batch 7 of 4 rows: 1 missing, 1 extra"]


def test_a_row_of_another_batch_does_not_stand_for_one_that_is_lost() -> None:
    beyond = rows_of(7, 5)[4:]
    result = check({7: [*ACCEPTED[7][2:], *beyond]}, {7: DeadLetteredRows(frozenset({first_id(7)}))})
    assert differences(result) == {"dead_lettered": 1, "missing": 1, "extra": 1}


def test_a_sample_is_repeatable_and_of_its_size() -> None:
    assert check({}, sample=2).compared == 2
    assert check({}, sample=0).compared == 0
    assert check({}, sample=99).compared == 5
    altered: dict[int, Sequence[Row]] = {b: [(*r[:-1], "{}") for r in rows] for b, rows in ACCEPTED.items()}
    seen = [check(altered, sample=1, seed=seed).examples[0] for seed in range(20)]
    assert seen == [check(altered, sample=1, seed=seed).examples[0] for seed in range(20)]
    assert len(set(seen)) > 1


def check_sample(
    changed: Mapping[int, Sequence[Row]], dead_lettered: Mapping[int, DeadLetteredRows] | None = None
) -> Result:
    store = Store()
    for batch_id, rows in {**ACCEPTED, **changed}.items():
        store.put(batch_id, rows)
    return sample.reconcile(store, DATASET, LEDGER[1:4], looked_up(dead_lettered), lambda rows: None)


def test_a_sample_is_judged_as_all_batches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_AT_ONCE", 2)
    result = check_sample({3: []})
    assert (result.ok, result.batches, result.expected, result.compared) == (True, 3, 12, 3), "3 is not in the sample"
    assert differences(check_sample({7: ACCEPTED[7][1:]})) == {"missing": 1}
    assert differences(check_sample({4: [*ACCEPTED[4], ACCEPTED[4][2]]})) == {"duplicated": 1}
    assert differences(check_sample({8: [(*row[:-1], "{}") for row in ACCEPTED[8]]})) == {"differing": 1}
    dead = {7: DeadLetteredRows(frozenset({first_id(7)}))}
    assert differences(check_sample({7: ACCEPTED[7][1:]}, dead)) == {"dead_lettered": 1}
    assert differences(check_sample({7: ACCEPTED[7][2:]}, dead)) == {"dead_lettered": 1, "missing": 1}


def test_the_report_says_that_it_is_of_a_sample() -> None:
    report = Report(9, 5, [check_sample({})], {}, sample=3)
    assert json.loads(as_json(report))["sample"] == 3
    console = Console(width=110, record=True, file=StringIO())
    show(report, console)
    told = console.export_text()
    assert "A SAMPLE of 3 batches" in told
    assert "Other batches were not looked at" in told


def test_dead_letters_that_cannot_be_read_to_the_end() -> None:
    class Stuck(MemoryPartitionReader):
        """A transaction is open: nothing comes, though the log has an end."""

        def poll(self, timeout: float) -> list[Message]:
            return []

    broker = MemoryBroker()
    broker.ensure_topics({dead_letters.TOPIC: 1})
    broker.producer("p").publish([OutgoingMessage(dead_letters.TOPIC, 0, b"", b"{}")])
    with pytest.raises(StoreDown, match="end"):
        list(dead_letters.read(Stuck(broker, dead_letters.TOPIC), 0))


def test_a_store_that_keeps_its_rejects_is_asked_for_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lake(MemoryStore):
        def rejected(self, dataset: Any, first: int, last: int) -> Iterator[DeadLettered]:
            every = starmap(DeadLettered, [(4, None, 2), (7, 70, 1), (7, None, 1), (7, 71, 1)])
            return (each for each in every if first <= each.batch_id <= last)

    def indexed(connection: Any, store: str, dataset: str, batches: Sequence[int]) -> list[DeadLettered]:
        assert (store, dataset) == ("memory", "logs")
        found = [DeadLettered(7, 70, 1), DeadLettered(7, None, 1), DeadLettered(8, 80, 1)]
        return [each for each in found if each.batch_id in batches]

    updated: list[Any] = []
    monkeypatch.setattr(dead_letter_index, "update", lambda connection, topic: updated.append(topic))
    monkeypatch.setattr(dead_letter_index, "dead_lettered", indexed)
    lookup = DeadLetterLookup(MagicMock(), lambda: "topic")  # type: ignore[arg-type, return-value]
    seven = DeadLetteredRows(frozenset({70, 71}), unnamed=1)
    assert lookup.of(Lake(), DATASET, range(10)) == {
        4: DeadLetteredRows(unnamed=2),
        7: seven,
        8: DeadLetteredRows(frozenset({80})),
    }
    assert lookup.of(Lake(), DATASET, [7, 9]) == {7: seven}
    assert updated == ["topic"] * 2, "before each look"


def test_what_retention_drops_while_it_is_read_is_not_missing() -> None:
    floors = iter((3, 7, 7, 7))
    kept = {batch: rows if batch >= 7 else [] for batch, rows in ACCEPTED.items()}
    result = repeated_if_floor_rises(lambda: next(floors), lambda floor: check(kept, first=floor))
    assert (result.expected, differences(result)) == (12, {})


def results() -> Iterator[Result]:
    yield check({})
    yield check({7: ACCEPTED[7][1:]})


def test_exit_codes() -> None:
    good, bad = results()
    assert Report(9, 1, [good], {}).exit_code == 0
    assert Report(9, 1, [good, bad], {}).exit_code == 1
    assert Report(9, 1, [good], {"lake": "unreachable"}).exit_code == 2
    assert Report(9, 1, [bad], {"lake": "unreachable"}).exit_code == 1
    assert Report(9, 1, [], {}).exit_code == 2


def test_the_report_for_machines() -> None:
    report = json.loads(as_json(Report(9, 5, list(results()), {})))
    assert (report["ok"], report["as_of"], report["seed"]) == (False, 9, 5)
    assert [r["missing"] for r in report["results"]] == [0, 1]
    assert [r["ok"] for r in report["results"]] == [True, False]


def test_the_report_for_people(tmp_path: Path) -> None:
    with (tmp_path / "report").open("w+") as file:
        show(Report(9, 5, list(results()), {"lake": "unreachable"}), Console(file=file, width=200))
        file.seek(0)
        text = file.read()
    for told in ("differs", "batch 7 of 4 rows: 1 missing", "lake could not be checked: unreachable", "--seed 5"):
        assert told in text


def test_rows_that_a_store_has_not_loaded_yet_are_told_apart_from_lost_rows() -> None:
    store = Store()
    for batch_id in (3, 4, 7, 8):
        store.put(batch_id, ACCEPTED[batch_id][batch_id == 4 :])
    selection = Selection(0, LAST, None, 1)
    result = reconcile.reconcile(
        store, DATASET, iter(LEDGER), looked_up(None), selection, lambda rows: None, watermark=8
    )
    assert (result.missing, result.not_loaded) == (5, 4)
    chosen = sample.reconcile(store, DATASET, LEDGER, looked_up(None), lambda rows: None, watermark=8)
    assert (chosen.missing, chosen.not_loaded) == (5, 4)


def test_the_rows_of_altered_batches_are_counted() -> None:
    assert check({4: [(*row[:-1], "{}") for row in ACCEPTED[4]]}).altered == 4
