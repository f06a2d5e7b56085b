"""Takes the cells of a plan through the probes into the evidence."""

import asyncio
import secrets
import time
from collections.abc import Callable
from functools import partial

from services import datasets
from services.bench.evidence.folder import Evidence
from services.bench.evidence.records import Tables, Trial
from services.bench.plan import cells
from services.bench.plan.cells import Cell, LoadCell, WriteCell
from services.bench.plan.schema import Plan, Scenario, State
from services.bench.probes import controls, k6, mixed, read, write
from services.bench.probes.searching import highest, rounded
from services.bench.probes.write import Offer
from services.bench.report import judging
from services.bench.target.urls import Target
from services.core.errors import Backpressure, LogpipeError, NeedsOperator, StoreDown
from services.generator.load import Load
from services.ingest_client.client import IngestClient

_LOAD_REQUEST_ROWS = 10_000
_SETTLE_SECONDS = 1800.0  # the longest wait until every store has what was written before
_POLL_SECONDS = 0.5
_VERIFY_WAIT_SECONDS = 120.0
_HOLDS = 3  # rates that are tried to confirm a knee, each lower than the one before

Say = Callable[[str], None]
Measure = Callable[[int], tuple[Trial, Tables]]
"""Measures a cell as the trial with this number."""


class OverBudget(Exception):
    """The time of the plan is used up."""


class Run:
    """One run, or its continuation: what the evidence has is not measured again. Blocks."""

    def __init__(
        self,
        plan: Plan,
        target: Target,
        evidence: Evidence,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._target = target
        self._evidence = evidence
        self._say = say
        self._clock = clock
        self._deadline = clock() + plan.budget_minutes * 60
        self._measured = evidence.measured()

    def execute(self) -> bool:
        """Measure everything that the plan's time allows, and return whether that was all of the plan.

        The journal says how the run ended; raises KeyboardInterrupt and LogpipeError.
        """
        try:
            self._controls()
            self._reads()
            self._load_by_k6()
            self._writes()
            if rate := self._knee():
                self._mixed(rate)
                self._faults(rate)
            self._verify()
        except OverBudget:
            self._evidence.note("over-budget", f"{self._plan.budget_minutes:g} minutes")
            return False
        except KeyboardInterrupt:
            self._evidence.note("interrupted")
            raise
        except LogpipeError as error:
            self._evidence.note("failed", str(error))
            raise
        self._evidence.note("finished")
        return True

    def _controls(self) -> None:
        missing: set[str] = set()
        for repeat, cell in cells.interleaved(self._plan, cells.control_cells(self._plan)):
            try:
                self._once(cell, repeat, partial(controls.measure, self._target, cell, repeat))
            except (Backpressure, NeedsOperator, StoreDown) as error:
                if cell.arm not in missing:
                    self._evidence.note("note", f"The control arm {cell.arm} was not measured: {error}")
                missing.add(cell.arm)

    def _reads(self) -> None:
        if self._plan.read is None:
            return
        for rows in self._plan.read.rows:
            for state in self._plan.read.states:
                order = cells.interleaved(self._plan, cells.read_cells(self._plan, rows, state))
                if all((cell.key, repeat) in self._measured for repeat, cell in order):
                    continue
                as_of = self._prepared(rows, state)
                for repeat, cell in order:
                    measure = partial(_read, self._target, self._plan, cell, repeat, as_of)
                    self._once(cell, repeat, measure)

    def _prepared(self, rows: int, state: State) -> int:
        """Bring the dataset into a state; returns the batch as of which every store is read."""
        self._load(rows)
        if state == "compacted":
            self._say("compacting")
            self._target.compact(self._plan.dataset)
        return self._settled()

    def _load(self, rows: int) -> None:
        """Add rows until the dataset has this many."""
        dataset = datasets.find(self._plan.dataset)
        missing = rows - self._count(next(iter(write.bases(self._plan).values())).route)
        if missing <= 0:
            return
        self._say(f"loading {missing:,} rows")

        async def send() -> None:
            async with IngestClient(self._target.ingest_url, self._target.token) as client:
                report = await Load(client, dataset, _LOAD_REQUEST_ROWS, 0, missing, seed=self._plan.seed).run()
                if report.acked != missing:
                    raise NeedsOperator(f"{report.acked:,} of {missing:,} rows were accepted: {report.problem}")

        asyncio.run(send())

    def _count(self, route: str) -> int:
        return int(self._target.get(f"{route}/stats", {"cache": "off"})[f"{self._plan.dataset}_count"])

    def _settled(self) -> int:
        """Wait until every store has what is accepted now; returns the last batch of that."""
        deadline = self._clock() + _SETTLE_SECONDS
        wanted = max(self._marks())
        while min(self._marks()) < wanted:
            if self._clock() > deadline:
                raise NeedsOperator(
                    f"a store has not loaded batch {wanted} after {_SETTLE_SECONDS:g} s: /readyz of the query API says"
                    " which one is late"
                )
            time.sleep(_POLL_SECONDS)
        return wanted

    def _marks(self) -> list[int]:
        """Return the batch up to which each store is loaded."""
        routes = sorted({contender.route for contender in write.bases(self._plan).values()})
        return [int(self._target.get(f"{route}/stats", {"cache": "off"})["as_of"]) for route in routes]

    def _writes(self) -> None:
        if self._plan.write is None:
            return
        for repeat, cell in cells.interleaved(self._plan, cells.write_cells(self._plan)):
            self._write(cell, repeat, self._plan.write.seconds)

    def _write(self, cell: WriteCell, repeat: int, seconds: float) -> bool:
        """Offer a rate, and return whether it was held."""
        measure = partial(self._offered, write.measure, cell, repeat, cell.rate, seconds)
        trial, tables = self._once(cell, repeat, measure) or self._kept(cell, repeat)
        return not judging.unheld(trial, tables, self._plan.limits)

    def _knee(self) -> int:
        """Search the knee, and hold it; returns its rate, 0 without one."""
        if self._plan.knee is None:
            return 0
        knee = self._plan.knee
        found, _ = highest(
            knee.start, knee.precision, lambda rate: self._write(WriteCell(round(rate), "search"), 0, knee.seconds)
        )
        for _ in range(_HOLDS):
            held = round(found)
            if held and all(
                self._write(WriteCell(held, "hold"), repeat, knee.hold_seconds) for repeat in range(self._plan.repeats)
            ):
                return held
            found = rounded(found / knee.precision)
        return 0

    def _load_by_k6(self) -> None:
        if self._plan.load is None:
            return
        if problem := k6.problem():
            self._say(problem)
            self._evidence.note("note", f"The load was not measured: {problem}")
            return
        load = self._plan.load
        self._load(load.rows)
        self._settled()
        for scenario, store in cells.load_pairs(self._plan):

            def is_held(rate: float, phase: str = "search", scenario: Scenario = scenario, store: str = store) -> bool:
                seconds = load.seconds if phase == "search" else load.hold_seconds
                return all(
                    self._k6(LoadCell(scenario, store, rate, phase), repeat, seconds)
                    for repeat in range(1 if phase == "search" else self._plan.repeats)
                )

            found, _ = highest(load.start, load.precision, is_held)
            for _ in range(_HOLDS):
                if not found or is_held(found, "hold"):
                    break
                found = rounded(found / load.precision)

    def _k6(self, cell: LoadCell, repeat: int, seconds: float) -> bool:
        """Offer an arrival rate, and return whether the objective was held."""
        measure = partial(k6.measure, self._target, self._plan.dataset, cell, repeat, seconds=seconds)
        trial, tables = self._once(cell, repeat, measure) or self._kept(cell, repeat)
        return not judging.missed(trial, tables["reads"], self._plan)

    def _mixed(self, knee: int) -> None:
        if self._plan.mixed is None:
            return
        seconds = self._plan.mixed.samples / self._plan.mixed.rate + 2 * mixed.LEAD_SECONDS
        for repeat, cell in cells.interleaved(self._plan, cells.mixed_cells(self._plan)):
            rate = knee * cell.share
            self._once(cell, repeat, partial(self._offered, mixed.measure_mixed, cell, repeat, rate, seconds))

    def _faults(self, knee: int) -> None:
        if self._plan.faults is None:
            return
        rate, seconds = knee * self._plan.faults.share, self._plan.faults.seconds
        for repeat, cell in cells.interleaved(self._plan, cells.fault_cells(self._plan)):
            self._once(cell, repeat, partial(self._offered, mixed.measure_fault, cell, repeat, rate, seconds))

    def _verify(self) -> None:
        """Compare the stores with the ledger, where the target can: counts of trials miss what cancels."""
        if self._plan.write is None:
            return
        self._say("verifying")
        try:
            differences = self._target.verify(self._plan.dataset, _VERIFY_WAIT_SECONDS)
        except NeedsOperator as error:
            self._evidence.note("note", f"The stores were not verified: {error}")
        else:
            told = f"verify found differences: {differences}" if differences else "verify found every accepted row"
            self._evidence.note("differs" if differences else "note", told)

    def _offered(
        self,
        measure: Callable[..., tuple[Trial, Tables]],
        cell: Cell,
        repeat: int,
        rate: float,
        seconds: float,
        number: int,
    ) -> tuple[Trial, Tables]:
        """Measure a cell that offers rows, once the stores have those of the trials before."""
        assert self._plan.write is not None
        self._settled()
        # A trial that was cut off has left rows under its number.
        tag = f"{self._evidence.about.run}-{number}-{secrets.token_hex(2)}"
        offer = Offer(rate, seconds, self._plan.write.request_rows, tag, self._plan.seed + 2 * number)
        return measure(self._target, self._plan, cell, repeat, number, offer)

    def _once(self, cell: Cell, repeat: int, measure: Measure) -> tuple[Trial, Tables] | None:
        """Measure a cell unless the evidence has it. Returns None if it has. Raises OverBudget."""
        if (cell.key, repeat) in self._measured:
            return None
        if self._clock() > self._deadline:
            raise OverBudget
        self._say(f"{cell.key}, repeat {repeat + 1}")
        trial, tables = measure(self._evidence.next_number())
        self._evidence.add(trial, tables)
        self._measured.add((cell.key, repeat))
        return trial, tables

    def _kept(self, cell: Cell, repeat: int) -> tuple[Trial, Tables]:
        trial = next(t for t in self._evidence.trials() if t.cell.key == cell.key and t.repeat == repeat)
        return trial, self._evidence.tables(trial)


def _read(
    target: Target, plan: Plan, cell: cells.ReadCell, repeat: int, as_of: int, number: int
) -> tuple[Trial, Tables]:
    return read.measure(target, plan, cell, repeat, number, as_of)
