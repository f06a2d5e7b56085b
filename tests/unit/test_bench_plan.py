"""Plans: every mistake names its line, and the cells and their order follow from the plan."""

import pytest

from services.bench.plan import cells
from services.bench.plan.contenders import contenders
from services.bench.plan.loading import parsed, shipped, text_of
from services.bench.plan.queries import QUERIES
from services.core.errors import Invalid

PLAN = """\
name: small
about: A plan for tests.
seed: 7
repeats: 2
budget_minutes: 5
stores:
  - postgres
  - lake:spark
read:
  rows: [10, 20]
  queries:
    - count
    - newest
  rates: [alone, 2.5]
"""


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_plan_is_valid(name: str) -> None:
    assert parsed(text_of(name), name).name == name


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("seed: 7", "sead: 7", "plan.yaml:3: unknown key sead; there are: name, about, seed"),
        ("rates:", "rate:", "plan.yaml:14: unknown key read.rate; there are: rows, states, methods, queries, rates"),
        (
            "lake:spark",
            "oracle",
            "plan.yaml:8: stores.1: unknown store 'oracle'; there are: postgres, clickhouse, lake",
        ),
        ("- newest", "- newst", "plan.yaml:13: read.queries.1: unknown query 'newst'; there are: count, group-by"),
        ("seed: 7\n", "", "plan.yaml:1: seed is missing"),
        ("repeats: 2", "repeats: two", "plan.yaml:4: repeats: Input should be a valid integer"),
        ("repeats: 2", "repeats: 0", "plan.yaml:4: repeats: Input should be greater than or equal to 1"),
        ("repeats: 2", "repeats: 2\nrepeats: 3", "plan.yaml:5: repeats is given twice"),
        ("[10, 20]", "[20, 10]", "plan.yaml:10: read.rows: must rise"),
        ("[10, 20]", "[10", "plan.yaml:11: no YAML"),
        ("read:", "mixed: {shares: [0.5], queries: [count]}\nread:", "plan.yaml:9: mixed: needs knee"),
        ("read:", "controls: [copy, kafak]\nread:", "plan.yaml:9: controls.1: Input should be 'cores', 'disk', 'copy'"),
        ("read:", "knee: {start: 1, seconds: 1, hold_seconds: 1}\nread:", "plan.yaml:9: knee: needs write"),
    ],
)
def test_a_mistake_is_told_with_its_line(was: str, becomes: str, told: str) -> None:
    with pytest.raises(Invalid) as raised:
        parsed(PLAN.replace(was, becomes), "plan.yaml")
    assert told in str(raised.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(Invalid) as raised:
        parsed(PLAN.replace("count", "cuont").replace("repeats: 2", "repeat: 2"), "plan.yaml")
    assert [line.partition(": ")[0] for line in str(raised.value).splitlines()] == [
        *("plan.yaml:1", "plan.yaml:4", "plan.yaml:12")
    ]


def test_a_plan_that_measures_nothing_is_refused() -> None:
    with pytest.raises(Invalid, match="measures nothing"):
        parsed(PLAN.partition("read:")[0], "plan.yaml")


def test_what_is_no_plan_is_told_which_there_are() -> None:
    with pytest.raises(Invalid, match=r"the shipped plans are: .*smoke"):
        text_of("no-such-plan")


def test_each_repeat_has_every_cell_in_an_order_of_its_own_that_the_seed_gives() -> None:
    plan = parsed(PLAN, "plan.yaml")
    all_cells = cells.read_cells(plan, 10, "as-written")
    assert len(all_cells) == 2 * 2 * 2
    order = cells.interleaved(plan, all_cells)
    assert order == cells.interleaved(plan, all_cells)
    first, second = ([cell for repeat, cell in order if repeat == each] for each in (0, 1))
    assert set(first) == set(second) == set(all_cells)
    assert first != second
    other = parsed(PLAN.replace("seed: 7", "seed: 8"), "plan.yaml")
    assert cells.interleaved(other, all_cells) != order


def test_every_store_and_engine_can_be_named() -> None:
    assert list(contenders()) == ["postgres", "clickhouse", "lake", "lake:spark"]
    assert contenders()["lake:spark"].parameters == {"engine": "spark"}


def test_a_result_is_what_all_stores_must_return_alike() -> None:
    assert QUERIES["count"].result({"logs_count": 3, "query_time_ms": 1}, "logs") == 3
    assert QUERIES["newest"].result({"data": [1], "query_time_ms": 1}, "logs") == [1]
