"""Settings of `logpipe bench`: the URLs of the stack under test."""

from pydantic import Field, SecretStr

from services.runtime.settings import Settings


class BenchSettings(Settings):
    ingest_url: str = Field("http://127.0.0.1:8081", description="where the ingest API listens")
    query_url: str = Field("http://127.0.0.1:30801", description="where the query API listens")
    prometheus_url: str = Field("", description="where Prometheus listens, for what broke first; empty: none")
    token: SecretStr | None = Field(None, description="bearer token, sent if set")
