"""The endpoints POST /api/collect/<singular or plural> of every dataset."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import create_model

from services.acceptance.committer import Submission
from services.acceptance.disk import DiskFloor
from services.acceptance.postgres_maintenance import LedgerIdentity
from services.core import metric_names, row_chunks
from services.core.dataset import Dataset
from services.core.errors import Invalid, TooLarge, UnsupportedMedia, shown
from services.core.ledger import FORMER_LEDGERS_HEADER, LEDGER_HEADER
from services.core.rows import RowCodec
from services.ingest_api import bodies
from services.ingest_api.decoding import BodyFormat, Decoder
from services.ingest_api.service import IngestService
from services.runtime import metrics, request_bodies
from services.runtime.http import needs
from services.runtime.request_bodies import InFlight

MAX_KEY_LENGTH = 255
HEALTH_PATH = "/api/collect/health"

_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
"""The media types that tools send for one JSON object in each line. None of them is registered."""

_EXAMPLES: dict[str, Any] = {
    "timestamp": "2026-01-31T12:00:00.123456Z",
    "uuid": "0b8f8f0e-5f0a-4e9e-9d0b-3f6f3a1f6c11",
    "number": 1.5,
    "json": {},
}


@dataclass(frozen=True, slots=True)
class Ingest:
    """What the endpoints need, in `app.state.ingest`.

    `ledger_identity` returns the identity of the ledger, whose id is '' until it has been read.
    """

    service: IngestService
    decoder: Decoder
    in_flight: InFlight
    disk: DiskFloor
    max_body: int
    ledger_identity: Callable[[], LedgerIdentity]


def collect_router(datasets: tuple[Dataset, ...]) -> APIRouter:
    router = APIRouter(prefix="/api/collect", tags=["collect"])

    @router.get("/health")
    async def health(request: Request) -> Response:
        ingest: Ingest = request.app.state.ingest
        ledger_id, former_ids = ingest.ledger_identity()
        return JSONResponse({"status": "UP"}, headers={LEDGER_HEADER: ledger_id, FORMER_LEDGERS_HEADER: former_ids})

    for dataset in datasets:
        codec = RowCodec(dataset)
        schema = _schema(dataset)
        router.add_api_route(
            f"/{dataset.singular}",
            _endpoint(
                dataset,
                dataset.singular,
                {"application/json": BodyFormat(codec.decode_object, row_chunks.decode_object)},
            ),
            methods=["POST"],
            summary=f"Accept one {dataset.singular}",
            dependencies=[needs("control")],
            openapi_extra=_request_body({"application/json": schema}),
        )
        router.add_api_route(
            f"/{dataset.plural}",
            _endpoint(
                dataset,
                dataset.plural,
                {
                    "application/json": BodyFormat(codec.decode_array, row_chunks.decode_array),
                    **dict.fromkeys(_NDJSON, BodyFormat(codec.decode_lines, row_chunks.decode_lines)),
                },
            ),
            methods=["POST"],
            summary=f"Accept many {dataset.plural}: a JSON list, or one object in each line",
            dependencies=[needs("control")],
            openapi_extra=_request_body(
                {"application/json": {"type": "array", "items": schema}, "application/x-ndjson": schema}
            ),
        )
    return router


def _endpoint(dataset: Dataset, word: str, body_formats: dict[str, BodyFormat]) -> Callable[[Request], Any]:
    many = word == dataset.plural
    accepted = metrics.counter(metric_names.ROWS_ACCEPTED, dataset.name)

    async def collect(request: Request) -> Response:
        ingest: Ingest = request.app.state.ingest
        key = _key(request)
        body_format, encoding = _body_format(request, body_formats), bodies.encoding_of(request)
        length = int(request.headers.get("content-length", 0))
        if length > ingest.max_body:
            raise TooLarge(
                f"the body has {length} bytes; at most {ingest.max_body} are accepted: send several requests"
            )
        ingest.disk.check()
        ingest.in_flight.refuse_if_full(length)
        with ingest.in_flight.reserve() as reservation:
            body = await request_bodies.read(request, reservation, ingest.max_body)
            decoded = await ingest.decoder.decode(
                body, encoding, body_format, reservation, ingest.max_body, hashed=bool(key)
            )
            del body  # its memory is not needed while the decoded rows wait for their commit
            if not decoded.chunks:
                raise Invalid("no rows: send at least one")
            submission = Submission(decoded.chunks, key, decoded.body_hash, request.headers.get(LEDGER_HEADER, ""))
            result = await ingest.service.accept(dataset, submission, decoded.size)
        if not result.duplicate:
            accepted.inc(result.rows)
        reply: dict[str, Any] = {"status": "accepted", "type": word, "batch_id": result.batch_id}
        if many:
            reply["count"] = result.rows
        reply["duplicate"] = result.duplicate
        # FastAPI would copy and validate a reply that is not a Response.
        return JSONResponse(reply, headers={LEDGER_HEADER: ingest.ledger_identity().ledger_id})

    return collect


def _key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "")
    if len(key) > MAX_KEY_LENGTH or not key.isascii():
        raise Invalid(f"Idempotency-Key: at most {MAX_KEY_LENGTH} ASCII characters")
    return key


def _body_format(request: Request, body_formats: dict[str, BodyFormat]) -> BodyFormat:
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type in body_formats:
        return body_formats[content_type]
    if content_type in ("application/x-www-form-urlencoded", "text/plain"):  # sent by `curl -d` and sendBeacon
        return body_formats["application/json"]
    raise UnsupportedMedia(f"Content-Type {shown(content_type)!r} is not known here; send {' or '.join(body_formats)}")


def _schema(dataset: Dataset) -> dict[str, Any]:
    types: dict[str, Any] = {"number": float, "json": dict[str, Any]}
    fields: dict[str, Any] = {
        column.wire: (types.get(column.kind, str), ... if column.required else None) for column in dataset.wire_columns
    }
    model = create_model(dataset.singular.capitalize(), **fields)
    schema: dict[str, Any] = model.model_json_schema()
    for column in dataset.wire_columns:
        schema["properties"][column.wire]["example"] = _EXAMPLES.get(column.kind, column.name)
        if column.kind == "timestamp":
            schema["properties"][column.wire]["format"] = "date-time"
    return schema


def _request_body(schemas: dict[str, Any]) -> dict[str, Any]:
    content = {content_type: {"schema": schema} for content_type, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}
