"""Each night at 02:00 UTC: the report of the day before, then its analysis by service."""

from airflow.sdk import DAG
from command import DEFAULTS, logpipe
from pendulum import datetime

# A run that was started by hand may have no logical date.
DAY = "{{ macros.ds_add((dag_run.logical_date or dag_run.run_after) | ds, -1) }}"

with DAG(
    "daily_pipeline",
    description="Reports of the day before",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["logpipe"],
) as dag:
    logpipe("daily-report", "--day", DAY) >> logpipe("service-analysis", "--day", DAY)
