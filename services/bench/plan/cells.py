"""The cells of a plan, and the order in which they are measured.

A cell is measured once in each repeat. Within a repeat the order is random, so that a change of the machine during the
run meets all stores alike. The order follows from the seed.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from services.bench.plan.schema import ALONE, Control, Method, Plan, Scenario, State


class _Cell(msgspec.Struct, frozen=True, tag_field="kind", omit_defaults=True):
    @property
    def key(self) -> str:
        """The identity of the cell, which reports of two runs share."""
        kind = type(self).__struct_config__.tag
        return "/".join([str(kind), *(_spelled(getattr(self, name)) for name in self.__struct_fields__)])


class ReadCell(_Cell, tag="read", frozen=True):
    """`rate`: queries a second, None for one at a time. `rows`: of the dataset, at least."""

    rows: int
    state: State
    method: Method
    query: str
    rate: float | None
    store: str


class WriteCell(_Cell, tag="write", frozen=True):
    """`rate`: rows a minute. A hold confirms the rate that the search for the knee has found."""

    rate: int
    phase: str = "ladder"  # or search, or hold


class MixedCell(_Cell, tag="mixed", frozen=True):
    share: float
    query: str
    store: str


class LoadCell(_Cell, tag="load", frozen=True):
    """`rate`: requests a second."""

    scenario: Scenario
    store: str
    rate: float
    phase: str = "search"  # or hold


class FaultCell(_Cell, tag="fault", frozen=True):
    component: str


class ControlCell(_Cell, tag="control", frozen=True):
    arm: Control


Cell = ReadCell | WriteCell | MixedCell | LoadCell | FaultCell | ControlCell
AnyCell = TypeVar("AnyCell", bound=Cell)


def _spelled(value: object) -> str:
    return ALONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def control_cells(plan: Plan) -> list[ControlCell]:
    return [ControlCell(arm) for arm in plan.controls]


def read_cells(plan: Plan, rows: int, state: State) -> list[ReadCell]:
    if plan.read is None:
        return []
    return [
        ReadCell(rows, state, method, query, None if rate == ALONE else float(rate), store)
        for method in plan.read.methods
        for query in plan.read.queries
        for rate in plan.read.rates
        for store in plan.stores
    ]


def write_cells(plan: Plan) -> list[WriteCell]:
    return [WriteCell(rate) for rate in plan.write.rates] if plan.write else []


def mixed_cells(plan: Plan) -> list[MixedCell]:
    if plan.mixed is None:
        return []
    return [
        MixedCell(share, query, store)
        for share in plan.mixed.shares
        for query in plan.mixed.queries
        for store in plan.stores
    ]


def load_pairs(plan: Plan) -> list[tuple[Scenario, str]]:
    """Return the pairs of scenario and store, in the order of measuring."""
    if plan.load is None:
        return []
    # All engines of the lake would need a parameter that the scenarios do not have.
    stores = dict.fromkeys(name.partition(":")[0] for name in plan.stores)
    pairs = [(scenario, store) for scenario in plan.load.scenarios for store in stores]
    random.Random(f"{plan.seed} load").shuffle(pairs)  # noqa: S311
    return pairs


def fault_cells(plan: Plan) -> list[FaultCell]:
    return [FaultCell(component) for component in plan.faults.components] if plan.faults else []


def interleaved(plan: Plan, cells: Sequence[AnyCell]) -> list[tuple[int, AnyCell]]:
    """Return (repeat, cell) in the order of measuring."""
    order: list[tuple[int, AnyCell]] = []
    for repeat in range(plan.repeats):
        shuffled = list(cells)
        # The cells themselves are part of the seed: each block of cells has an order of its own.
        random.Random(f"{plan.seed} {repeat} {[cell.key for cell in cells]}").shuffle(shuffled)  # noqa: S311
        order += [(repeat, cell) for cell in shuffled]
    return order
