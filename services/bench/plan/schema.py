"""What a plan may say. Every threshold that the report applies is here, with its default."""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from services import datasets
from services.bench.plan.contenders import contenders
from services.bench.plan.queries import QUERIES

State = Literal["as-written", "compacted"]
Method = Literal["scan", "kept", "cache"]
"""scan: the rows themselves are read. kept: rollups and metadata may be used. cache: the reply comes from the cache."""

ALONE: Literal["alone"] = "alone"
Scenario = Literal["simple", "aggregate", "mixed", "sort", "full_scan", "large_data"]
Control = Literal[
    "cores",
    "disk",
    "copy",
    "row-insert",
    "executemany",
    "kafka",
    "clickhouse-file",
    "hdfs-put",
    "spark-batch",
]
"""What `services/bench/probes/controls` measures without the pipeline: the machine, PostgreSQL (copy, row-insert,
executemany), Kafka, ClickHouse, HDFS and Spark."""


def _one_of(kind: str, names: Callable[[], Iterable[str]]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in (known := tuple(names())):
            told = {"kind": kind, "name": name, "known": ", ".join(known)}
            raise PydanticCustomError("unknown_name", "unknown {kind} '{name}'; there are: {known}", told)
        return name

    return AfterValidator(check)


StoreName = Annotated[str, _one_of("store", contenders)]
QueryName = Annotated[str, _one_of("query", lambda: QUERIES)]
DatasetName = Annotated[str, _one_of("dataset", lambda: [dataset.name for dataset in datasets.described()])]
Rows = Annotated[int, Field(ge=1, le=1_000_000_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Limits(_Part):
    """Beyond these, a cell is void or a rate is not held. All are printed in the report."""

    driver_late_ms: float = Field(250, gt=0, description="a request that is sent later than this voids its cell")
    in_flight: int = Field(256, ge=1, description="requests under way at once; one more is dropped, and voids its cell")
    drain_seconds: float = Field(60, gt=0, description="a rate is held if every store has its rows after so long")
    acked_share: float = Field(0.99, gt=0, le=1, description="of the rows that a rate offers, for the rate to be held")
    lag_slope: float = Field(0.05, gt=0, description="seconds by which rows may become older in a second of a rate")
    disk_bytes_a_row: int = Field(500, ge=1, description="in all stores and Kafka together, a high estimate")


class Read(_Part):
    """Cells: rows x states x methods x queries x rates x stores. `rows` rise; each is loaded, and then read."""

    rows: list[Rows] = Field(min_length=1)
    states: list[State] = Field(default=["as-written"], min_length=1)
    methods: list[Method] = Field(default=["scan"], min_length=1)
    queries: list[QueryName] = Field(min_length=1)
    rates: list[float | Literal["alone"]] = Field(
        default=[ALONE], min_length=1, description="queries a second; alone: one at a time, the store idle in between"
    )
    samples: int = Field(20, ge=1, description="queries of a cell in each repeat")
    warm_up: int = Field(3, ge=1, description="queries before them, which are not counted")


class Write(_Part):
    """Cells: one for each rate."""

    rates: list[Rows] = Field(min_length=1, description="rows a minute")
    seconds: Seconds
    warm_up_seconds: float = Field(5, ge=0, description="at the same rate, before; not counted")
    request_rows: int = Field(1000, ge=1, le=10_000)


class Knee(_Part):
    """The highest rate that is held: doubled from `start` until one is not held, bisected, then held once more."""

    start: Rows = Field(description="rows a minute")
    precision: float = Field(1.1, gt=1, le=2, description="the search ends when the bounds differ by this factor")
    seconds: Seconds = Field(description="how long the search offers each rate")
    hold_seconds: Seconds = Field(description="how long the rate that the search has found is offered")


class Mixed(_Part):
    """Cells: shares of the knee x queries x stores. The reads are measured while rows come in."""

    shares: list[Annotated[float, Field(gt=0, lt=1)]] = Field(min_length=1)
    queries: list[QueryName] = Field(min_length=1)
    rate: float = Field(2, gt=0, description="queries a second")
    samples: int = Field(20, ge=1)


class Load(_Part):
    """The highest arrival rate that holds an objective is searched, for each scenario of k6 and each store."""

    scenarios: list[Scenario] = Field(min_length=1)
    start: float = Field(gt=0, description="requests a second")
    precision: float = Field(1.25, gt=1, le=2, description="the search ends when the bounds differ by this factor")
    seconds: Seconds = Field(description="how long the search offers each rate")
    hold_seconds: Seconds = Field(description="how long the rate that the search has found is offered")
    slo_ms: float = Field(gt=0, description="a reply within this time is in time")
    slo_share: float = Field(0.95, gt=0, lt=1, description="of the requests that must be answered in time")
    rows: Rows = Field(1_000_000, description="of the dataset, at least")


class Faults(_Part):
    """Cells: one for each component, which is killed while rows come in at a share of the knee."""

    components: list[str] = Field(min_length=1)
    share: float = Field(0.5, gt=0, lt=1)
    after_seconds: Seconds = Field(20, description="from the start of the load to the kill")
    seconds: Seconds = Field(90, description="of the load, in all")


class Plan(_Part):
    name: str = Field(min_length=1, pattern=r"^[a-z0-9-]+$")
    about: str
    seed: int = Field(ge=0, le=2**31 - 1)
    repeats: int = Field(ge=1, le=100)
    budget_minutes: float = Field(gt=0, description="no trial begins after so long")
    dataset: DatasetName = "bench_logs"
    stores: list[StoreName] = Field(min_length=1)
    limits: Limits = Limits()
    controls: list[Control] = []
    read: Read | None = None
    write: Write | None = None
    knee: Knee | None = None
    mixed: Mixed | None = None
    load: Load | None = None
    faults: Faults | None = None
