"""The generator's HTTP contract, over an ingest API that stores in memory."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from pydantic import SecretStr

from services import datasets
from services.core.dataset import Dataset
from services.core.errors import Invalid
from services.core.rows import RowCodec
from services.generator import main
from services.generator.settings import GeneratorSettings
from services.ingest_client.replies import Accepted


class FakeClient:
    """Stands in for IngestClient: counts rows by dataset; refuses while `refusing`."""

    def __init__(self) -> None:
        self.rows = {"logs": 0, "events": 0, "footprints": 0}
        self.times: list[int] = []  # of the footprints, in microseconds
        self.ids: list[str] = []
        self.refusing = False
        self.refused = 0

    def __call__(self, url: str, token: str) -> "FakeClient":
        return self

    async def __aenter__(self) -> "FakeClient":
        return self

    async def __aexit__(self, *error: object) -> None: ...

    async def send(self, dataset: Dataset, body: bytes, key: str, on_retry: object) -> Accepted:
        if self.refusing:
            self.refused += body.count(b"\n")
            raise Invalid("as told")
        rows = RowCodec(dataset).decode_lines(body)
        self.rows[dataset.name] += rows.count
        if dataset.name == "events":
            self.ids += rows.columns[0]
        if dataset.name == "footprints":
            self.times += rows.columns[2]
        return Accepted(duplicate=False, batch_id=1)


@pytest.fixture
def ingest(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(main, "IngestClient", fake)
    return fake


@asynccontextmanager
async def serving(settings: GeneratorSettings) -> AsyncIterator[AsyncClient]:
    app = main.create_app(settings)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://localhost") as http,
    ):
        yield http


@pytest.fixture
async def http(ingest: FakeClient) -> AsyncIterator[AsyncClient]:
    async with serving(GeneratorSettings(generator_seed=7)) as http:
        yield http


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the fake has no event for each condition
            await asyncio.sleep(0.005)


async def status(http: AsyncClient) -> Any:
    return (await http.get("/control/status")).json()


async def test_health(http: AsyncClient) -> None:
    assert (await http.get("/health")).json() == {"status": "UP"}
    assert (await http.get("/readyz")).status_code == 200


async def test_start_status_stop(http: AsyncClient, ingest: FakeClient) -> None:
    assert (await status(http))["running"] is False
    reply = (
        await http.post("/control/start", params={"batch_size": 10, "log_interval": 0.02, "event_interval": 0.04})
    ).json()
    config = {"batch_size": 10, "log_interval": 0.02, "event_interval": 0.04}
    throughput = {"logs_per_minute": 30_000, "events_per_minute": 15_000, "total_per_minute": 45_000}
    assert reply == {"status": "started", "config": config, "throughput": throughput, "seed": 7}
    await until(lambda: ingest.rows["logs"] >= 50 and ingest.rows["events"] >= 20)
    now = await status(http)
    assert (now["running"], now["config"], now["throughput"]) == (True, config, throughput)
    assert set(now["stats"]) == {"logs_sent", "events_sent", "errors", "refused", "indeterminate", "behind_ms"}
    assert (await http.post("/control/stop")).json() == {"status": "stopped"}
    now = await status(http)
    assert (now["running"], now["stats"]["behind_ms"]) == (False, 0)
    assert now["stats"]["logs_sent"] == ingest.rows["logs"]
    assert now["stats"]["events_sent"] == ingest.rows["events"]


async def test_defaults(http: AsyncClient) -> None:
    reply = (await http.post("/control/start")).json()
    assert reply["config"] == {"batch_size": 100, "log_interval": 5.0, "event_interval": 10.0}
    assert reply["throughput"] == {"logs_per_minute": 1200, "events_per_minute": 600, "total_per_minute": 1800}


async def test_a_second_start_replaces_the_first(http: AsyncClient, ingest: FakeClient) -> None:
    fast = {"batch_size": 10, "log_interval": 0.01, "event_interval": 0.01}
    (await http.post("/control/start", params=fast))
    await until(lambda: ingest.rows["logs"] > 0)
    (await http.post("/control/start", params={"batch_size": 3, "log_interval": 1000, "event_interval": 1000}))
    await until(lambda: ingest.rows["logs"] % 10 == 3 and ingest.rows["events"] % 10 == 3)
    before = dict(ingest.rows)
    await asyncio.sleep(0.1)  # ten intervals of the first
    assert ingest.rows == before
    assert len(set(ingest.ids)) == len(ingest.ids)  # the second has rows of its own


async def test_errors_are_counted(http: AsyncClient, ingest: FakeClient) -> None:
    ingest.refusing = True
    (await http.post("/control/start", params={"batch_size": 10, "log_interval": 0.01, "event_interval": 100}))
    await until(lambda: ingest.refused >= 30)
    stats = (await status(http))["stats"]
    assert stats["errors"] == stats["refused"] + stats["indeterminate"]
    assert stats["logs_sent"] == 0


async def test_bursts(http: AsyncClient, ingest: FakeClient) -> None:
    logs = (await http.post("/burst/logs", params={"count": 1050, "batch_size": 100})).json()
    assert {key: logs[key] for key in ("status", "requested", "sent", "errors")} == {
        "status": "completed",
        "requested": 1050,
        "sent": 1050,
        "errors": 0,
    }
    assert (await http.post("/burst/events")).json()["sent"] == 1000
    mixed = (await http.post("/burst/mixed")).json()
    assert (mixed["logs"]["sent"], mixed["events"]["sent"], mixed["total_sent"]) == (1000, 500, 1500)
    assert ingest.rows == {"logs": 2050, "events": 1500, "footprints": 0}
    assert len(set(ingest.ids)) == 1500
    ingest.refusing = True
    failed = (await http.post("/burst/logs", params={"count": 5})).json()
    assert (failed["sent"], failed["errors"], failed["problem"]) == (0, 5, "422: as told")


async def test_a_burst_of_past_days(http: AsyncClient, ingest: FakeClient) -> None:
    reply = (await http.post("/burst/footprints", params={"count": 3000, "days": 2})).json()
    assert (reply["sent"], ingest.rows["footprints"]) == (3000, 3000)
    now = time.time_ns() // 1000
    assert now - 2 * 86_400_000_000 - 60_000_000 < min(ingest.times) < max(ingest.times) < now
    assert max(ingest.times) - min(ingest.times) > 1.9 * 86_400_000_000


async def test_samples(http: AsyncClient) -> None:
    for name, one in (("logs", "log"), ("events", "event")):
        codec = RowCodec(datasets.find(name))
        assert codec.decode_object((await http.get(f"/sample/{one}")).content).count == 1
        assert codec.decode_array((await http.get(f"/sample/{name}")).content).count == 10
        assert codec.decode_array((await http.get(f"/sample/{name}?count=3")).content).count == 3
    assert (await http.get("/sample/log")).json() != (await http.get("/sample/log")).json()


@pytest.mark.parametrize(
    "path",
    [
        "/control/start?batch_size=0",
        "/control/start?batch_size=100001",
        "/control/start?batch_size=many",
        "/control/start?log_interval=0",
        "/control/start?log_interval=-1",
        "/control/start?event_interval=nan",
        "/control/start?event_interval=inf",
        "/burst/logs?count=0",
        "/burst/events?count=10000001",
        "/burst/footprints?days=-1",
        "/burst/footprints?days=367",
        "/burst/logs?batch_size=0",
        "/burst/mixed?event_count=-5",
    ],
)
async def test_parameters_out_of_range(http: AsyncClient, path: str) -> None:
    reply = await http.post(path)
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["detail"].startswith(path.partition("?")[2].partition("=")[0])
    assert (await status(http))["running"] is False


async def test_samples_are_bounded(http: AsyncClient) -> None:
    assert (await http.get("/sample/logs?count=0")).status_code == 422
    assert (await http.get("/sample/logs?count=1000000")).status_code == 422


async def test_the_page_and_the_index(http: AsyncClient) -> None:
    page = await http.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text  # nothing from elsewhere
    index = (await http.get("/", headers={"Accept": "*/*"})).json()
    assert set(index) == {"service", "status", "endpoints"}
    paths = [line.split()[1] for lines in index["endpoints"].values() for line in lines]
    assert set(paths) <= set((await http.get("/openapi.json")).json()["paths"])


async def test_a_token_guards_control_and_samples(ingest: FakeClient) -> None:
    settings = GeneratorSettings(host="0.0.0.0", token=SecretStr("t0ken"))
    async with serving(settings) as http:
        for method, path in (
            ("POST", "/control/start"),
            ("POST", "/control/stop"),
            ("POST", "/burst/logs"),
            ("POST", "/burst/events"),
            ("POST", "/burst/mixed"),
            ("POST", "/burst/footprints"),
            ("GET", "/control/status"),
            ("GET", "/sample/log"),
            ("GET", "/sample/events"),
        ):
            assert (await http.request(method, path)).status_code == 401, path
        assert (await http.get("/health")).status_code == 200
        assert (await http.post("/control/stop", headers={"Authorization": "Bearer t0ken"})).status_code == 200
    settings = GeneratorSettings(host="0.0.0.0", token=SecretStr("t0ken"), public_reads=True)
    async with serving(settings) as http:
        assert (await http.get("/sample/log")).status_code == 200
        assert (await http.post("/burst/logs")).status_code == 401


async def test_metrics(http: AsyncClient) -> None:
    (await http.post("/burst/logs", params={"count": 5}))
    text = (await http.get("/metrics")).text
    assert 'logpipe_generator_rows_total{dataset="logs",outcome="acked"}' in text
    assert 'logpipe_generator_behind_seconds{dataset="logs"} 0.0' in text


async def test_a_seed_repeats_its_rows(ingest: FakeClient) -> None:
    async def sampled() -> Any:
        async with serving(GeneratorSettings(generator_seed=3)) as http:
            row = json.loads((await http.get("/sample/event")).content)
            del row["timestamp"]
            return row

    assert await sampled() == await sampled()
