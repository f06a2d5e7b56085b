"""The routes of the reports: those of a day come from the lake, those of the last minutes from PostgreSQL."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import date
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from pydantic import BeforeValidator
from starlette.concurrency import run_in_threadpool

from services.core.errors import NotFound
from services.core.ports import DEFAULT_QUERY_SECONDS
from services.lake import NAME as LAKE
from services.postgres.connection import Connection
from services.query_api.disconnection import while_connected
from services.query_api.ledger_threads import LedgerThreads
from services.query_api.query_threads import QueryThreads
from services.query_api.replies import json_reply
from services.reports import windows
from services.reports.tables import SCHEMAS, ReportTable
from services.runtime.http import needs
from services.runtime.settings import LakeSettings, PostgresSettings

_COMMANDS = {"daily": "daily-report", "services": "service-analysis"}
_COMMON = ("day", "as_of", "computed_at")  # columns with the same value in each row of a report
_THREADS = 4  # for the reports of a day, and the same number for the windows of the last minutes


class Reports(NamedTuple):
    tables: Mapping[str, ReportTable]
    lake: QueryThreads
    ledger: LedgerThreads

    def of(self, name: str, day: date) -> list[dict[str, Any]]:
        """Return the rows of the report `name` of a day. Raises NotFound when the report was never made."""
        rows = self.tables[name].of(day)
        if not rows:
            days = self.tables[name].days()
            existing = f"the latest is of {days[0]}, the first of {days[-1]}" if days else "there is none yet"
            raise NotFound(f"no report {name} of {day}: {existing}. Make it: logpipe {_COMMANDS[name]} --day {day}")
        return rows


async def _reports(request: Request) -> Reports:
    reports: Reports = request.app.state.reports
    return reports


_Reports = Annotated[Reports, Depends(_reports)]
_Day = Annotated[
    date, BeforeValidator(date.fromisoformat), Query(description="of event time, in UTC", examples=["2026-11-21"])
]


def router(settings: PostgresSettings) -> APIRouter:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lake = LakeSettings()
        tables = {name: ReportTable(lake, name) for name in SCHEMAS}
        ledger = LedgerThreads(settings.postgres_url.get_secret_value(), _THREADS)
        opened = Reports(tables, QueryThreads(LAKE, _THREADS), ledger)
        app.state.reports = opened
        yield
        opened.lake.close()
        await run_in_threadpool(ledger.close)

    routes = APIRouter(prefix="/api/reports", tags=["reports"], dependencies=[needs("read")], lifespan=lifespan)

    @routes.get("", summary="The existing reports and their days, the latest first")
    async def names(request: Request, reports: _Reports) -> Response:
        def read() -> Response:
            return json_reply(
                {"reports": [{"name": name, "days": table.days()} for name, table in reports.tables.items()]}
            )

        return await _from_lake(request, reports, read)

    @routes.get("/daily", summary="A day: rows by level and service, error rate, busiest hours, slowest endpoints")
    async def daily(request: Request, day: _Day, reports: _Reports) -> Response:
        def read() -> Response:
            (report,) = reports.of("daily", day)
            return json_reply(report)

        return await _from_lake(request, reports, read)

    @routes.get("/services", summary="A report of a day by service, compared with the seven days before it")
    async def services(
        request: Request,
        day: _Day,
        reports: _Reports,
        service: Annotated[str | None, Query(description="only this service")] = None,
    ) -> Response:
        return await _from_lake(request, reports, lambda: _by_service(reports, day, service))

    @routes.get("/realtime", summary="Rows by level and service in windows of ten seconds, the latest first")
    async def realtime(
        request: Request, reports: _Reports, minutes: Annotated[int, Query(ge=1, le=windows.KEPT_MINUTES)] = 5
    ) -> Response:
        def read(connection: Connection) -> Response:
            found = windows.latest(connection, minutes)
            if found is None:
                raise NotFound("no windows were counted yet. Start the job: logpipe realtime-aggregator")
            return json_reply(
                {
                    "minutes": minutes,
                    "window_seconds": windows.WINDOW_SECONDS,
                    "windows": [window._asdict() for window in found],
                }
            )

        return await reports.ledger.read(request, read)

    return routes


async def _from_lake(request: Request, reports: Reports, read: Callable[[], Response]) -> Response:
    return await while_connected(request, reports.lake.run(lambda _: read(), DEFAULT_QUERY_SECONDS))


def _by_service(reports: Reports, day: date, service: str | None) -> Response:
    by_service = {row["service"]: row for row in reports.of("services", day)}
    whole = by_service.pop(None)
    if service is not None and service not in by_service:
        raise NotFound(f"no logs of service {service!r} on {day}; there are of: {', '.join(sorted(by_service))}")
    chosen = [by_service[name] for name in sorted(by_service) if service in (None, name)]
    return json_reply(
        {**{name: whole[name] for name in _COMMON}, "all": _body(whole), "services": list(map(_body, chosen))}
    )


def _body(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _COMMON}
