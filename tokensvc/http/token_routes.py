"""Minting, batches and inspection: the routes under `/v1/tokens`.

A handler checks the caller, reads and parses the body, asks `issuing`, and encodes the answer once,
straight to bytes. Batches do each of these item by item, in slices, so that a thousand tokens never
hold the event loop from everybody else.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar import Request, post
from litestar.response.base import ASGIResponse

from tokensvc.errors import (
    BodyTooLargeError,
    FieldError,
    InvalidRequestError,
    IvsError,
    IvsNotFoundError,
    TokenServiceError,
)
from tokensvc.http.bodies import BatchBody, decode_json, read_json_body
from tokensvc.http.openapi import documented
from tokensvc.http.problems import problem_of
from tokensvc.http.service import Service, authorize, service_of
from tokensvc.http.structs import (
    BatchAnswer,
    BatchRequest,
    FindingAnswer,
    InspectionAnswer,
    InspectRequest,
    MintRequest,
    RefusedItem,
)
from tokensvc.issuing.batch import BatchItem, BatchOutcome, issue_batch
from tokensvc.issuing.issuer import IssuedToken
from tokensvc.issuing.slices import LoopSlices
from tokensvc.keyring.record import KeyPhase
from tokensvc.tokens.arn import InvalidArnError, PublicKeyArn
from tokensvc.tokens.inspect import inspect_token
from tokensvc.tokens.limits import MAX_TOKEN_CHARS
from tokensvc.tokens.reading import unverified_kid
from tokensvc.tokens.validate import parse_defaults, parse_token_request

__all__ = ["TOKEN_ROUTES"]

_JSON: Final = "application/json"
_encode = msgspec.json.Encoder().encode


@post(
    "/v1/tokens",
    status_code=201,
    summary="Mint one participant token",
    operation_class=documented("mint", MintRequest, 201, IssuedToken),
)
async def mint(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Issue a token for one participant of a stage."""
    service = service_of(request)
    facts = authorize(request, service, "tokens:mint")
    body = await read_json_body(request, service.max_body_bytes)
    wanted = parse_token_request(
        decode_json(body), regions=service.regions, max_duration=service.max_duration
    )
    with service.metrics.time_mint():
        issued = await service.issuer.issue(wanted)
    service.metrics.token_issued(issued.issuer, wanted.stage.region)
    del facts
    return ASGIResponse(body=_encode(issued), status_code=201, media_type=_JSON)


@post(
    "/v1/tokens/batch",
    status_code=200,
    summary="Mint many participant tokens",
    operation_class=documented("batch", BatchRequest, 200, BatchAnswer),
)
async def mint_batch(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Issue up to 1,000 tokens; each item is answered by a token or by a problem."""
    service = service_of(request)
    facts = authorize(request, service, "tokens:mint")
    batch = service.cut_batch(await read_json_body(request, service.max_batch_body_bytes))
    slices = LoopSlices()
    items = await _parse_items(batch, service, slices)
    outcomes = await issue_batch(service.issuer, items, slices)
    body = await _encode_outcomes(items, outcomes, service, facts.request_id, slices)
    return ASGIResponse(body=body, status_code=200, media_type=_JSON)


@post(
    "/v1/tokens/inspect",
    status_code=200,
    summary="Say why IVS would refuse a token",
    operation_class=documented("inspect", InspectRequest, 200, InspectionAnswer),
)
async def inspect(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Decode and verify a token, and say in words what IVS would refuse."""
    service = service_of(request)
    authorize(request, service, "tokens:read")
    body = decode_json(await read_json_body(request, service.max_body_bytes))
    answer = await _inspect(_parse_inspection(body), service)
    return ASGIResponse(body=_encode(answer), status_code=200, media_type=_JSON)


TOKEN_ROUTES: Final = (mint, mint_batch, inspect)


async def _parse_items(batch: BatchBody, service: Service, slices: LoopSlices) -> list[BatchItem]:
    # One item has the bound of one request, whatever room the others leave.
    limit = service.max_body_bytes
    if len(bytes(batch.defaults)) > limit:
        raise BodyTooLargeError(
            f"defaults is larger than {limit} bytes.",
            errors=(FieldError("defaults", "too_large", f"may have {limit} bytes", limit),),
        )
    defaults = parse_defaults(
        decode_json(batch.defaults), regions=service.regions, max_duration=service.max_duration
    )
    items: list[BatchItem] = []
    for index, raw in enumerate(batch.tokens):
        await slices.breathe()
        try:
            if len(memoryview(raw)) > limit:
                raise _item_too_large(limit)
            items.append(
                parse_token_request(
                    decode_json(raw),
                    regions=service.regions,
                    max_duration=service.max_duration,
                    defaults=defaults,
                )
            )
        except TokenServiceError as error:
            items.append(_in_item(error, index))
    return items
