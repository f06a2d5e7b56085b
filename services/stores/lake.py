"""The lake: a Delta table per dataset on HDFS; what reads and writes it is in services/lake."""

from collections.abc import Callable, Collection, Mapping
from datetime import date, timedelta

from services.core.dataset import Dataset
from services.core.ports import StoreReader
from services.lake.maintenance import TableMaintenance
from services.lake.processes import ProcessReader
from services.lake.writer import EmbeddedWriter
from services.runtime.settings import LakeSettings


def open_reader() -> ProcessReader:
    return ProcessReader(LakeSettings())


def _open_spark() -> StoreReader:
    from services.lake.settings import SparkConnectSettings
    from services.lake.spark import SparkReader

    return SparkReader(SparkConnectSettings())


ENGINES: Mapping[str, Callable[[], StoreReader]] = {"spark": _open_spark}


def open_writer() -> EmbeddedWriter:
    return EmbeddedWriter(LakeSettings())


def drop_days(dataset: Dataset, before: int, keep: Collection[int] = ()) -> int:
    """Remove all days below `before` from the table, except those in `keep`; how many. Raises StoreDown.

    Days are counted from 1970-01-01 UTC.
    """
    return TableMaintenance(LakeSettings(), dataset).drop_days(_date(before), [_date(day) for day in keep])


def _date(day: int) -> date:
    return date(1970, 1, 1) + timedelta(days=day)
