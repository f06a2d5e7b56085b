"""Measures what the middleware adds to a request: `python footprints/bench.py [--kafka HOST:PORT]`.

One FastAPI app is called in this process by ASGI, bare and behind the middleware, in blocks of requests that take
turns. A request is timed with one pass of the event loop before it, so that waiting for the background thread counts.
What is added is the difference of the same quantile of both. `CPU` is the median of the loop's own processor time in
the quietest block, which other programs on the machine change least.

The middleware delivers to memory, to a Kafka that does not run, and to a real one if it is named. OpenTelemetry's ASGI
middleware, whose spans go nowhere, is measured too if it is installed. Needs fastapi.
"""

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from statistics import median, quantiles
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from request_footprints import FootprintMiddleware, counts
from request_footprints.kafka import KafkaProducer
from request_footprints.memory import MemoryProducer
from request_footprints.settings import Settings

TOPIC = "footprints-bench"
NOWHERE = "127.0.0.1:1"
CHUNKS = 100

App = Callable[[Any, Any, Any], Awaitable[None]]

_numbers = count()
CASES: dict[str, Callable[[], str]] = {
    "literal route": lambda: "/items",
    "parameterised route": lambda: f"/items/{next(_numbers)}",
    "distinct 404s": lambda: f"/missing/{next(_numbers)}",
    f"stream of {CHUNKS} chunks": lambda: "/stream",
}


class DiscardingProducer(MemoryProducer):
    """Keeps nothing."""

    def poll(self) -> None:
        super().poll()
        self.delivered.clear()


def bare() -> FastAPI:
    app = FastAPI()

    @app.get("/items")
    async def items() -> dict[str, int]:
        return {"items": 0}

    @app.get("/items/{item}")
    async def item(item: int) -> dict[str, int]:
        return {"item": item}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(CHUNKS):
                yield b"x"

        return StreamingResponse(chunks())

    return app


def with_footprints(service: str, open_producer: Callable[[Settings], Any], kafka: str = NOWHERE) -> FastAPI:
    app = bare()
    app.add_middleware(
        FootprintMiddleware, service=service, open_producer=open_producer, kafka=kafka, topic=TOPIC, flush_seconds=0.0
    )
    return app


def with_opentelemetry() -> FastAPI | None:
    try:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        return None
    app = bare()
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=TracerProvider())
    return app


def variants(kafka: str | None) -> Iterator[tuple[str, FastAPI]]:
    yield "bare", bare()
    yield "bare again", bare()
    yield "footprints, to memory", with_footprints("memory", DiscardingProducer)
    yield "footprints, Kafka stopped", with_footprints("stopped", KafkaProducer)
    if kafka:
        admin = AdminClient({"bootstrap.servers": kafka})  # its answers come only while it lives
        try:
            admin.create_topics([NewTopic(TOPIC, 4, 1)])[TOPIC].result(30)
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise
        yield "footprints, to Kafka", with_footprints("kafka", KafkaProducer, kafka)
    if app := with_opentelemetry():
        yield "OpenTelemetry", app


async def block(app: App, path: Callable[[], str], requests: int) -> list[tuple[float, float]]:
    """Return the seconds of each request, and of these the seconds that this thread had a processor."""

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(3600)  # a stream waits here for the client to leave, and is cancelled at its end
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    seconds = []
    for _ in range(requests):
        scope = {
            "type": "http",
            "method": "GET",
            "path": path(),
            "query_string": b"",
            "headers": [],
            "root_path": "",
            "http_version": "1.1",
            "scheme": "http",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        start, cpu = time.perf_counter(), time.thread_time()
        await asyncio.sleep(0)
        await app(scope, receive, send)
        seconds.append((time.perf_counter() - start, time.thread_time() - cpu))
    return seconds


async def measure(
    apps: dict[str, FastAPI], path: Callable[[], str], blocks: int, requests: int
) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the times of each variant, block by block."""
    for app in apps.values():
        await block(app, path, requests // 10)
    found = defaultdict[str, list[list[tuple[float, float]]]](list)
    for number in range(blocks):
        names = list(apps) if number % 2 else list(reversed(apps))
        for name in names:
            found[name].append(await block(apps[name], path, requests))
            await asyncio.sleep(0.3)  # the background thread finishes outside the next block
    return found


def figures(blocks: list[list[tuple[float, float]]]) -> tuple[float, float, float]:
    """Return the quantiles p50 and p99 of the time, and the processor time, in microseconds."""
    cuts = quantiles((1e6 * wall for times in blocks for wall, _ in times), n=100)
    return cuts[49], cuts[98], 1e6 * min(median(cpu for _, cpu in times) for times in blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", help="host:port of a Kafka to deliver to")
    parser.add_argument("--blocks", type=int, default=10, help="blocks of each variant (%(default)s)")
    parser.add_argument("--requests", type=int, default=4000, help="requests of a block (%(default)s)")
    arguments = parser.parse_args()
    apps = dict(variants(arguments.kafka))
    print("Microseconds a request; added: the difference to `bare`. `bare again` shows the noise of the machine.")
    for case, path in CASES.items():
        requests = arguments.requests // 10 if "stream" in case else arguments.requests
        found = asyncio.run(measure(apps, path, arguments.blocks, requests))
        print(f"\n{case:26}     p50      p99      CPU   added p50   added p99   added CPU")
        base = figures(found["bare"])
        for name in apps:
            each = figures(found[name])
            added = "".join(f"{figure - of_base:12.1f}" for figure, of_base in zip(each, base, strict=True))
            print(f"{name:26}" + "".join(f"{figure:9.1f}" for figure in each) + (added if name != "bare" else ""))
    print()
    for service in ("memory", "stopped", "kafka"):
        print(f"{service:10}{counts(service)}")


if __name__ == "__main__":
    main()
