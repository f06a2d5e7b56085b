"""Settings of `logpipe send`."""

from pathlib import Path

from pydantic import Field, SecretStr

from services.runtime.settings import Settings, in_home


class SendSettings(Settings):
    ingest_url: str = Field("http://127.0.0.1:8081", description="where the ingest API listens")
    token: SecretStr | None = Field(None, description="bearer token, sent if set")
    send_state: Path = Field(
        in_home("~/.local/state/logpipe/send"), description="folder of what --resume needs to know"
    )
    send_request_rows: int = Field(5000, ge=1, le=100_000, description="lines of one request; fewer when they are long")
    send_in_flight: int = Field(4, ge=1, le=64, description="requests under way at once")
    send_patience: float = Field(120, ge=0, description="seconds to retry a request that fails before giving up")
