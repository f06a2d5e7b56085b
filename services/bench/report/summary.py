"""The shape of report.json: all that a report says, as values. Response times are in milliseconds."""

import msgspec

from services.bench.report.statistics import Estimate

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}

Quantiles = dict[str, Estimate | None]
"""By name; None where the samples are too few for the quantile."""


class ReadResult(msgspec.Struct, frozen=True):
    """One cell. `store_ms`: the median of the store's own time. `methods`: replies by method. `files`: read, median."""

    key: str
    store: str
    label: str
    repeats: int
    samples: int
    response: Quantiles
    store_ms: Estimate | None
    methods: dict[str, int]
    files: int
    curve: list[tuple[float, float]]
    void: list[str]


class ReadCondition(msgspec.Struct, frozen=True):
    """Cells that differ in nothing but the store. `winner`: '' unless its interval lies below all others."""

    rows: int
    state: str
    method: str
    query: str
    verb: str
    rate: float | None
    share: float | None
    results: list[ReadResult]
    winner: str
    verdict: str


class WriteResult(msgspec.Struct, frozen=True):
    """One rate. Rates are rows a minute. `cpu`: CPU-seconds, `disk`: bytes, by component, of a million rows.

    `shares`: the sustained rate as a share of the rows a second of control arms, by arm; {} if none was measured.
    `mb_per_cpu_second`: of accepted bodies, over the CPU time of all components; 0 where it was not measured.
    """

    key: str
    phase: str
    rate: int
    repeats: int
    seconds: float
    accepted: int
    refused: int
    indeterminate: int
    sustained: Estimate
    shares: dict[str, Estimate]
    response: Quantiles
    freshness: dict[str, Quantiles]
    slope: dict[str, float]
    drained: dict[str, float | None]
    cpu: dict[str, float]
    disk: dict[str, float]
    mb_per_cpu_second: float
    held: bool
    unheld: list[str]
    void: list[str]


class Knee(msgspec.Struct, frozen=True):
    """`rate`: the highest rate that was held once more after the search; 0 if none was. `shares`: of its trials."""

    rate: int
    beyond: int
    broke_first: str
    shares: dict[str, Estimate]


class LoadResult(msgspec.Struct, frozen=True):
    """A scenario of k6 on a store. `rate`: requests a second that were held, 0 for none; `beyond`: was not held."""

    scenario: str
    store: str
    label: str
    rate: float
    beyond: float
    missed: list[str]
    samples: int
    response: Quantiles


class Second(msgspec.Struct, frozen=True):
    """A second of a trial with a fault: requests by their intended time."""

    at: int
    acked: int
    failed: int
    slowest_ms: float


class FaultResult(msgspec.Struct, frozen=True):
    """`recovered`: seconds from the kill until replies came as fast as before, `visible`: until a store's rows did."""

    key: str
    component: str
    repeats: int
    accepted: int
    refused: int
    indeterminate: int
    recovered: list[float | None]
    visible: dict[str, list[float | None]]
    timeline: list[Second]
    fault_at: int
    void: list[str]


class ControlResult(msgspec.Struct, frozen=True):
    """A limit of the machine or of a component, measured without the pipeline."""

    key: str
    arm: str
    values: dict[str, Estimate]


class Void(msgspec.Struct, frozen=True):
    key: str
    reasons: list[str]


class Summary(msgspec.Struct, frozen=True):
    """`status`: '' for a complete run, else why it is not. `findings`: sentences. `needed`: samples, by quantile.

    `slo`: the objective of the loads, in words. `notes`: what was not measured, and why.
    """

    plan: str
    about: str
    run: str
    started: str
    status: str
    findings: list[str]
    thresholds: dict[str, float]
    needed: dict[str, int]
    voids: list[Void]
    reads: list[ReadCondition]
    mixed: list[ReadCondition]
    writes: list[WriteResult]
    knee: Knee | None
    faults: list[FaultResult]
    loads: list[LoadResult]
    slo: str
    notes: list[str]
    controls: list[ControlResult]
    machine: dict[str, str]
    versions: dict[str, str]
    target: dict[str, str]
    settings: dict[str, str]
