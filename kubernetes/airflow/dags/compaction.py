"""Each hour: merge the lake's small files, and delete the files that no query reads any more."""

from airflow.sdk import DAG
from command import DEFAULTS, logpipe
from pendulum import datetime

with DAG(
    "compaction",
    description="Maintenance of the lake",
    schedule="0 * * * *",
    start_date=datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["logpipe"],
) as dag:
    logpipe("maintain", "--once")
