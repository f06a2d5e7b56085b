"""`logpipe daily-report` and `logpipe service-analysis`: parses, wires, runs. Each ends once its report is written."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime

import click
from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from rich.console import Console

from services import datasets
from services.core.errors import LogpipeError, StoreDown
from services.lake import NAME
from services.reports.tables import Report, ReportTable
from services.runtime import logs
from services.runtime.settings import LakeSettings
from spark_jobs import daily_report as daily
from spark_jobs import service_analysis as services
from spark_jobs.day import DATASET, Extent, loaded
from spark_jobs.session import open_session
from spark_jobs.settings import ReportSettings
from spark_jobs.tables import Tables

Make = Callable[[SparkSession, LakeSettings, date, Extent], Sequence[Report]]

_day = click.option(
    "--day",
    required=True,
    type=click.DateTime(["%Y-%m-%d"]),
    help="A day of event time, in UTC. A day may be reported again.",
)


@click.command()
@_day
def daily_report(day: datetime) -> None:
    """Report a day: rows by level and service, error rate, busiest hours, slowest endpoints.

    The report replaces an earlier one of the same day. It is served at /api/reports/daily.
    """
    run("daily", daily.rows, day.date())


@click.command()
@_day
def service_analysis(day: datetime) -> None:
    """Analyse a day by service: error rates and latencies against the seven days before, top errors, anomalies.

    The report replaces an earlier one of the same day. It is served at /api/reports/services.
    """
    run("services", services.rows, day.date())


def run(name: str, make: Make, day: date) -> None:
    settings = ReportSettings()
    logs.configure(f"report-{name}", settings.log_level)
    console = Console(stderr=True)
    try:
        extent = loaded(settings, day)
        Tables(settings, datasets.find(DATASET)).prepare()
        with console.status("starting Spark"):
            spark = open_session(f"report-{name}", settings)
        try:
            with console.status(f"reading the logs of {day}"):
                rows = make(spark, settings, day, extent)
        finally:
            spark.stop()
        as_of = {"as_of": extent.as_of, "computed_at": datetime.now(UTC)}
        ReportTable(settings, name).replace(day, [{**row, **as_of} for row in rows])
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error
    except (PySparkException, Py4JError) as error:
        raise click.ClickException(str(StoreDown(NAME, str(error).strip().splitlines()[0]))) from error
    count = max(row["rows"] for row in rows)  # one of the rows is about all logs
    click.echo(f"report {name} of {day}: {count:,} logs, as of batch {extent.as_of}")
