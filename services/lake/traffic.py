"""The panels of the dashboard of requests as SQL (see TrafficQuery), the same for every engine of the lake."""
# ruff: noqa: S608 - see services/lake/sql.py

from dataclasses import replace
from itertools import pairwise

from services.core.local_week import WEEK
from services.core.queries import (
    END_OF_STATUSES,
    MINUTE,
    NO_STATUS,
    OTHER_STATUS,
    PERCENTILES,
    STATUS_CLASSES,
    TrafficQuery,
)
from services.lake.snapshot import FileConditions
from services.lake.sql import Renderer, Statement

# Coarse buckets of durations: so many that one holds few of an endpoint's durations, and so few that counts of all are
# small. A duration of 10^_DECADES ms or more is in the last bucket.
_DECADES = 6
_STEPS = 100  # of a decade
_NO_BUCKET = -2


class TrafficRenderer(Renderer):
    """Renders one statement about a dataset with the columns of `footprints`."""

    def panel(self, query: TrafficQuery, as_of: int) -> Statement:
        where, file_conditions = self._where(query.filters, as_of), self._file_conditions(query.filters, as_of)
        match query.panel:
            case "total":
                return self.count(query.filters, as_of)
            case "week":
                return self._select(f"{self._minute(query)}, count(*)", where, file_conditions, "GROUP BY 1 ORDER BY 1")
            case "endpoints":
                what = f"{self._value('method')}, {self._endpoint()}, count(*)"
                rest = f"GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT {query.limit:d}"
                return self._select(what, where, file_conditions, rest)
            case "statuses":
                return self._select(
                    f"{self._status_class()}, count(*)", where, file_conditions, "GROUP BY 1 ORDER BY 1"
                )
            case "durations":
                return self._durations(query, where, file_conditions)

    def _durations(self, query: TrafficQuery, where: str, file_conditions: FileConditions) -> Statement:
        """Find the ranks in two steps, because to sort all durations would take more memory than a query may use.

        The first step counts the durations of each endpoint by coarse bucket. The counts tell in which bucket each rank
        is, and which endpoints can be among the slowest. The second step reads these buckets of these endpoints only,
        and counts their durations one by one.
        """
        duration = self._value("duration_ms")
        requests = self._select(
            f"{self._value('method')} AS method, {self._endpoint()} AS endpoint, {duration} + 0 AS duration,"
            f" {_bucket(duration)} AS bucket",
            f"{where} AND {duration} IS NOT NULL",
            file_conditions,
        )
        ranks = [
            f"reached * 100 >= total * {each:d} AND (reached - part) * 100 < total * {each:d}" for each in PERCENTILES
        ]
        values = [f"min(CASE WHEN reached * 100 >= total * {each:d} THEN duration END)" for each in PERCENTILES]
        text = f"""
            WITH taken AS ({requests.text}),
            counted AS (
                SELECT method, endpoint, bucket, count(*) AS part FROM taken GROUP BY method, endpoint, bucket
            ), summed AS (
                SELECT method, endpoint, bucket, part,
                       sum(part) OVER (PARTITION BY method, endpoint ORDER BY bucket) AS reached,
                       sum(part) OVER (PARTITION BY method, endpoint) AS total
                FROM counted
            ), with_a_rank AS (
                SELECT method, endpoint, bucket, total, reached - part AS below,
                       CASE WHEN {ranks[1]} THEN bucket ELSE {_NO_BUCKET:d} END AS slowness
                FROM summed WHERE {" OR ".join(f"({rank})" for rank in ranks)}
            ), placed AS (
                SELECT method, endpoint, bucket, total, below, rank() OVER (ORDER BY slowness DESC) AS place
                FROM with_a_rank
            ), placed_by_endpoint AS (
                SELECT method, endpoint, bucket, total, below,
                       min(place) OVER (PARTITION BY method, endpoint) AS place
                FROM placed
            ), wanted AS (
                SELECT method, endpoint, bucket, total, below FROM placed_by_endpoint WHERE place <= {query.limit:d}
            ), single AS (
                SELECT wanted.method, wanted.endpoint, wanted.bucket, total, below, duration, count(*) AS part
                FROM wanted JOIN taken ON taken.method = wanted.method
                     AND taken.endpoint = wanted.endpoint AND taken.bucket = wanted.bucket
                GROUP BY 1, 2, 3, 4, 5, 6
            ), ranked AS (
                SELECT method, endpoint, total, duration,
                       below + sum(part) OVER (PARTITION BY method, endpoint, bucket ORDER BY duration) AS reached
                FROM single
            )
            SELECT method, endpoint, total, {", ".join(values)} FROM ranked
            GROUP BY 1, 2, 3 ORDER BY 5 DESC, 1, 2 LIMIT {query.limit:d}"""
        return replace(requests, text=text)

    def _minute(self, query: TrafficQuery) -> str:
        """Return the minute of the local week, as `local_week.minute_of_week` does."""
        time = self.dialect.microseconds(self.dialect.name(self.dataset.time))
        shift = f"{query.offsets[-1].since_monday:d}"
        if branches := [
            f"WHEN {time} < {following.start:d} THEN {offset.since_monday:d}"
            for offset, following in pairwise(query.offsets)
        ]:
            shift = f"CASE {' '.join(branches)} ELSE {shift} END"
        since = f"({time} + {shift}) % {WEEK:d}"
        return f"{since} - {since} % {MINUTE:d}"

    def _endpoint(self) -> str:
        route = self._value("route")
        return f"CASE WHEN {route} = {self.dialect.text('')} THEN {self._value('link')} ELSE {route} END"

    def _status_class(self) -> str:
        status, (_, first) = self._value("status"), STATUS_CLASSES[0]
        classes = " ".join(f"WHEN {status} >= {start:d} THEN '{name}'" for name, start in reversed(STATUS_CLASSES))
        return (
            f"CASE WHEN {status} IS NULL THEN '{NO_STATUS}'"
            f" WHEN {status} < {first:d} OR {status} >= {END_OF_STATUSES:d} THEN '{OTHER_STATUS}' {classes} END"
        )


def _bucket(duration: str) -> str:
    """Return the number of a duration's bucket. It never falls while the duration rises: neither does a product."""
    decades = " ".join(
        f"WHEN {duration} < {10**decade:d} THEN {decade * _STEPS:d} + floor({duration} * {_STEPS:d} / {10**decade:d})"
        for decade in range(_DECADES + 1)
    )
    return f"CASE WHEN {duration} < 0 THEN -1 {decades} ELSE {(_DECADES + 1) * _STEPS:d} END"
