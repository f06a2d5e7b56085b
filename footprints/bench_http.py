"""Measures what the middleware adds to a request over HTTP: `python footprints/bench_http.py [--kafka HOST:PORT]`.

The variants of the app of bench.py take turns, in reverse order in every other round. In its turn, a variant is served
by uvicorn in a new process, and k6, a third process, sends GET /items/{n} at a fixed rate, so that a slow reply does
not delay the next request. The first two seconds of a turn do not count. Needs fastapi, httpx, uvicorn, and k6 on the
PATH.
"""

import argparse
import json
import multiprocessing
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import uvicorn
from bench import variants

WARM_UP_SECONDS = 2
SCRIPT = """
import http from "k6/http";
export const options = {
  summaryTrendStats: ["p(50)", "p(99)"],
  scenarios: { items: {
    executor: "constant-arrival-rate", rate: __ENV.RATE, duration: `${__ENV.SECONDS}s`, preAllocatedVUs: 50,
  } },
};
export default function () {
  http.get(`${__ENV.URL}/items/${__ITER}`, { tags: { name: "item" } });
}
export function handleSummary(data) {
  return { [__ENV.SUMMARY]: JSON.stringify(data.metrics) };
}
"""


def serve(name: str, kafka: str | None, listening: socket.socket) -> None:
    """Serve a variant until this process is terminated."""
    app = dict(variants(kafka))[name]
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([listening])


@contextmanager
def served(name: str, kafka: str | None) -> Iterator[str]:
    """Yield the URL of a variant."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(name, kafka, listening))
        process.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            httpx.get(f"{url}/items/0", timeout=60)
            yield url
        finally:
            process.terminate()
            process.join()


def send(url: str, rate: int, seconds: int) -> tuple[float, float]:
    """Return the quantiles p50 and p99 of the response time in microseconds. Exits if a request failed."""
    with tempfile.TemporaryDirectory() as folder:
        script, summary = Path(folder, "items.js"), Path(folder, "summary.json")
        script.write_text(SCRIPT)
        values = {"URL": url, "RATE": rate, "SECONDS": seconds, "SUMMARY": summary}
        environment = [f"--env={key}={value}" for key, value in values.items()]
        subprocess.run(["k6", "run", "--quiet", "--no-usage-report", *environment, str(script)], check=True)
        metrics = json.loads(summary.read_text())
    if failed := metrics["http_req_failed"]["values"]["passes"]:
        sys.exit(f"{failed} requests to {url} failed")
    times = metrics["http_req_duration"]["values"]
    return 1e3 * times["p(50)"], 1e3 * times["p(99)"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", help="host:port of a Kafka to deliver to")
    parser.add_argument("--rate", type=int, default=500, help="requests a second (%(default)s)")
    parser.add_argument("--seconds", type=int, default=10, help="of each turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    arguments = parser.parse_args()
    if shutil.which("k6") is None:
        sys.exit("k6 is not on the PATH: https://grafana.com/docs/k6/latest/set-up/install-k6")
    names = list(dict(variants(arguments.kafka)))
    found = defaultdict[str, list[tuple[float, float]]](list)
    for number in range(arguments.rounds):
        for name in names if number % 2 else reversed(names):
            with served(name, arguments.kafka) as url:
                send(url, arguments.rate, WARM_UP_SECONDS)
                found[name].append(send(url, arguments.rate, arguments.seconds))
    print(f"GET /items/{{n}} over HTTP, {arguments.rate} a second: microseconds, median of rounds (least to most)")
    for name, rounds in found.items():
        columns = [
            f"{label} {median(times):6.0f} ({min(times):.0f} to {max(times):.0f})"
            for label, times in zip(("p50", "p99"), zip(*rounds, strict=True), strict=True)
        ]
        print(f"{name:26}{'   '.join(columns)}")


if __name__ == "__main__":
    main()
