"""A stack that is known by its URLs."""

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import httpx

from services.bench.evidence.surroundings import masked_url
from services.bench.target.settings import BenchSettings
from services.core.errors import Invalid, LogpipeError, NeedsOperator, StoreDown

_SECONDS = 300.0  # the longest that a reply may take; the query API ends queries long before
_PROMETHEUS = "Prometheus"
_POSTGRES = "LOGPIPE_POSTGRES_URL"


_PRODUCER_PERF = ("kafka-producer-perf-test", "kafka-producer-perf-test.sh")


def producer_perf_of_path() -> Sequence[str]:
    """Return the command of an installed Kafka. Raises NeedsOperator."""
    for name in _PRODUCER_PERF:
        if found := shutil.which(name):
            return (found,)
    raise NeedsOperator(
        f"{_PRODUCER_PERF[1]} is not on the PATH, and the jars of the local stack are not on this machine: add the"
        " folder bin of a Kafka to the PATH, or run `python -m services.local.jars kafka`"
    )


class Target:
    """Thread-safe. Methods block, except those of the clients that `query` makes."""

    def __init__(
        self, settings: BenchSettings, producer_perf: Callable[[], Sequence[str]] = producer_perf_of_path
    ) -> None:
        """`producer_perf` returns the command of kafka-producer-perf-test, or raises NeedsOperator."""
        self.producer_perf = producer_perf
        self.ingest_url = settings.ingest_url.rstrip("/")
        self.query_url = settings.query_url.rstrip("/")
        self.prometheus_url = settings.prometheus_url.rstrip("/")
        self.token = settings.token.get_secret_value() if settings.token else ""
        self._tls = ssl.create_default_context()  # takes longer to make than a query
        self._client = httpx.Client(headers=self._headers, timeout=_SECONDS, verify=self._tls, trust_env=False)

    def close(self) -> None:
        self._client.close()

    def problem(self) -> str | None:
        """Return None, or why the stack cannot be measured, with how to start it."""
        needed = {
            "query API": f"{self.query_url}/health",
            "ingest API": f"{self.ingest_url}/api/collect/health",
            **({_PROMETHEUS: f"{self.prometheus_url}/-/ready"} if self.prometheus_url else {}),
        }
        for name, url in needed.items():
            try:
                self._client.get(url, timeout=10).raise_for_status()
            except httpx.HTTPError as error:
                return (
                    f"{name}: no answer at {masked_url(url)} ({error}): start the stack by `logpipe up`, or name"
                    " another one by LOGPIPE_QUERY_URL, LOGPIPE_INGEST_URL and LOGPIPE_PROMETHEUS_URL"
                )
        return None

    def describe(self) -> dict[str, str]:
        """Return what a reader of the report must know about the target, without secrets."""
        urls = {"query API": self.query_url, "ingest API": self.ingest_url, _PROMETHEUS: self.prometheus_url or "none"}
        return {name: masked_url(url) for name, url in urls.items()}

    def query(self) -> httpx.AsyncClient:
        """Return a new client of the query API, whose paths begin at the store's route."""
        unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(
            base_url=f"{self.query_url}/api/query",
            headers=self._headers,
            timeout=_SECONDS,
            limits=unbounded,
            verify=self._tls,
            trust_env=False,
        )

    def get(self, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Return the body of one reply of the query API, which is not measured. Raises LogpipeError."""
        try:
            reply = self._client.get(f"{self.query_url}/api/query/{path}", params=dict(parameters))
            body: dict[str, Any] = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise StoreDown("query API", str(error) or type(error).__name__) from error
        if reply.status_code != 200:
            raise LogpipeError(f"{path}: {reply.status_code} {body.get('detail')}")
        return body

    def prometheus(self, path: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the series that Prometheus answers with; [] without a Prometheus. Raises StoreDown."""
        if not self.prometheus_url:
            return []
        try:
            reply = httpx.get(
                f"{self.prometheus_url}/api/v1/{path}", params=dict(parameters), verify=self._tls, trust_env=False
            )
            reply.raise_for_status()
            found: list[dict[str, Any]] = reply.json()["data"]["result"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise StoreDown(_PROMETHEUS, str(error) or type(error).__name__) from error
        return found

    def compact(self, dataset: str) -> None:
        """Run the maintenance of the stores once. Raises NeedsOperator if it fails."""
        self._command((0,), "maintain", "--once", "--dataset", dataset)

    def empty(self, dataset: str) -> None:
        """Drop all rows of a dataset on request from every store. Raises NeedsOperator if that fails."""
        self._command((0,), "maintain", "--once", "--empty", "--dataset", dataset)

    def verify(self, dataset: str, wait: float) -> str:
        """Compare every store with the ledger, and return what differs; '' if nothing does.

        `wait`: seconds that the stores have to load everything. Raises NeedsOperator if something cannot be checked.
        """
        done = self._command((0, 1), "verify", "--dataset", dataset, "--wait", f"{wait:g}")
        return done.stdout.strip() if done.returncode else ""

    def _command(self, expected: Collection[int], *words: str) -> subprocess.CompletedProcess[str]:
        self.postgres_url()
        done = subprocess.run(
            [sys.executable, "-m", "services", *words],
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in expected:
            raise NeedsOperator(f"`logpipe {' '.join(words)}` failed: {(done.stderr or done.stdout)[-500:].strip()}")
        return done

    def environment(self) -> Mapping[str, str]:
        """Return the variables by which commands find the stores of this stack."""
        return os.environ

    def postgres_url(self) -> str:
        return self.url(_POSTGRES)

    def url(self, variable: str) -> str:
        """Return the URL of a component, which `variable` names in the environment of the commands.

        Raises NeedsOperator if it is not known: the default would be that of another stack.
        """
        if url := self.environment().get(variable):
            return url
        raise NeedsOperator(f"the stores of the stack cannot be reached: set {variable} and the URLs of the others")

    def cpu(self) -> dict[str, float]:
        """Return the CPU-seconds that each component has used since it started."""
        series = self.prometheus("query", {"query": "sum by (job) (process_cpu_seconds_total)"})
        return {each["metric"].get("job", "?"): float(each["value"][1]) for each in series}

    def disk(self) -> dict[str, int]:
        """Return the bytes of each component's data."""
        return {}

    def free_bytes(self) -> int | None:
        """Return the free space where the stores keep their data, None if the target cannot tell."""
        return None

    def components(self) -> frozenset[str]:
        """Return the components that run and can be killed."""
        return frozenset()

    def kill(self, component: str) -> None:
        """End one of `components` at once, as a crash does. Its supervisor starts it again. Raises Invalid."""
        raise Invalid(f"{component} cannot be killed: only components of a stack on this machine can")

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}
