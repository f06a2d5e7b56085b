"""Control arms: limits of the machine and of a component, measured without the pipeline.

A figure of the pipeline means something as a ratio to one of these, measured in the same run. An arm is a function
(target) -> values by name. An arm blocks, writes a bounded amount, and deletes what it has written. If its component
cannot be measured, an arm raises NeedsOperator, StoreDown or Backpressure, with the reason.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from services.bench.evidence.records import Pace, Tables, Trial, made
from services.bench.plan.cells import ControlCell
from services.bench.plan.schema import Control
from services.bench.probes.controls import clickhouse, hdfs, kafka, machine, postgres, spark
from services.bench.target.urls import Target

ARMS: Mapping[Control, Callable[[Target], Mapping[str, float]]] = {
    "cores": machine.cores,
    "disk": machine.disk,
    "copy": postgres.copy,
    "row-insert": postgres.row_insert,
    "executemany": postgres.executemany,
    "kafka": kafka.produce,
    "clickhouse-file": clickhouse.insert,
    "hdfs-put": hdfs.put,
    "spark-batch": spark.batch,
}


def measure(target: Target, cell: ControlCell, repeat: int, number: int) -> tuple[Trial, Tables]:
    """Raises NeedsOperator, StoreDown or Backpressure if the component of the arm cannot be measured."""
    started, start = datetime.now(UTC), time.monotonic()
    values = ARMS[cell.arm](target)
    trial = made(number, cell, repeat, started, time.monotonic() - start, Pace(0, 0, 0, 0))
    return msgspec.structs.replace(trial, values=values), {}
