"""Serves what `logpipe verify` last found as metrics, because the command itself has ended when Prometheus asks."""

from services.core import metric_names
from services.ledger import verifications
from services.postgres.pool import Pool
from services.runtime import metrics


def report(ledger: Pool) -> None:
    """Set the gauges of the last verification of every store and dataset. Blocks. Raises StoreDown."""
    with ledger.connection() as connection:
        recorded = verifications.recorded(connection)
    for found, seconds in recorded:
        figures = {
            metric_names.VERIFY_ROWS_MISSING: found.missing,
            metric_names.VERIFY_ROWS_EXTRA: found.extra,
            metric_names.VERIFY_ROWS_DUPLICATED: found.duplicated,
            metric_names.VERIFY_ROWS_ALTERED: found.altered,
            metric_names.VERIFY_BATCHES_CHECKED: found.batches,
            metric_names.VERIFY_AGE_SECONDS: seconds,
        }
        for metric, value in figures.items():
            metrics.gauge(metric, found.store, found.dataset).set(value)
