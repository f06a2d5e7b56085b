"""The lake: a Delta table per dataset on HDFS. The room `services/lake` reads and writes it."""

from collections.abc import Collection
from datetime import date, timedelta

from services.core.dataset import Dataset
from services.core.ports import Refiller, StoreReader, StoreWriter
from services.core.stores import Store
from services.lake import NAME
from services.runtime.settings import LakeSettings


def _open_reader() -> StoreReader:
    from services.lake.processes import ProcessReader

    return ProcessReader(LakeSettings())


def _open_spark_reader() -> StoreReader:
    from services.lake.settings import SparkConnectSettings
    from services.lake.spark import SparkReader

    return SparkReader(SparkConnectSettings())


def _open_writer() -> StoreWriter:
    from services.lake.writer import EmbeddedWriter

    return EmbeddedWriter(LakeSettings())


def _open_refiller() -> Refiller:
    from services.lake.refill import RefillWriter

    return RefillWriter(LakeSettings())


def _drop_days(dataset: Dataset, before: int, keep: Collection[int]) -> int:
    from services.lake.maintenance import TableMaintenance

    return TableMaintenance(LakeSettings(), dataset).drop_days(_date(before), [_date(day) for day in keep])


def _date(day: int) -> date:
    return date(1970, 1, 1) + timedelta(days=day)


STORE = Store(
    name=NAME,
    route="hdfs",
    reply_name="hdfs",
    label="lake",
    open_reader=_open_reader,
    open_writer=_open_writer,
    drop_days=_drop_days,
    open_refiller=_open_refiller,
    engine="embedded",
    other_engines={"spark": _open_spark_reader},
)
