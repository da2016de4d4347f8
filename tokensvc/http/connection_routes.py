"""Connection tokens: the routes under `/v1/connection-tokens`."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar import Request, delete, post
from litestar.response.base import ASGIResponse

from tokensvc.errors import (
    BannedError,
    IdempotencyConflictError,
    LedgerBusyError,
    NoSigningKeyError,
    NotFoundError,
    NotRepeatableError,
    PolicyDeniedError,
    RateLimitedError,
    StoreUnavailableError,
)
from tokensvc.http import examples
from tokensvc.http.answers import Answer
from tokensvc.http.bodies import decode_json, read_json_body
from tokensvc.http.caller_policy import is_counted
from tokensvc.http.idempotency import request_ref
from tokensvc.http.openapi import RouteDoc, documented
from tokensvc.http.service import authorize, service_of
from tokensvc.http.structs import ConnectionTokenRequest, DisconnectAccepted
from tokensvc.issuing.connection import ConnectionToken
from tokensvc.tokens.connection import parse_connection_request

__all__ = ["CONNECTION_ROUTES"]

_JSON: Final = "application/json"
_encode = msgspec.json.Encoder().encode


@post(
    "/v1/connection-tokens",
    status_code=201,
    summary="Mint a connection token",
    opt=documented(
        RouteDoc(
            operation_id="mintConnectionToken",
            scope="connection-tokens:mint",
            request=ConnectionTokenRequest,
            answer=ConnectionToken,
            request_examples=examples.CONNECTION,
            answer_examples=examples.CONNECTION_ANSWER,
            problems=(
                BannedError,
                PolicyDeniedError,
                RateLimitedError,
                NoSigningKeyError,
                IdempotencyConflictError,
                NotRepeatableError,
                LedgerBusyError,
                StoreUnavailableError,
            ),
        )
    ),
)
async def mint_connection_token(request: Request[Any, Any, Any]) -> Answer:
    """Issue a token for a `RealTimeConnection` of one AWS account and Region."""
    service = service_of(request)
    facts = await authorize(request, service, "connection-tokens:mint")
    body = await read_json_body(request, service.max_body_bytes)
    wanted = parse_connection_request(
        decode_json(body),
        regions=service.regions,
        max_duration=service.max_connection_duration,
    )
    ref = request_ref(facts, "connection-tokens", body)
    caller = facts.caller_name
    admitted = await service.gate.admit_connection(
        caller,
        wanted,
        service.max_connection_duration,
        counted=await is_counted(service, caller, ref),
    )
    issued = await service.desk.connect(admitted.request, facts.caller_id, ref)
    facts.key_arn = issued.key_arn
    service.metrics.connection_token_issued(wanted.region)
    return Answer(_encode(issued), 201, fields=admitted.headers.items())


@delete(
    "/v1/connection-tokens/{token_id:str}",
    status_code=202,
    summary="Revoke a connection token",
    opt=documented(
        RouteDoc(
            operation_id="revokeConnectionToken",
            scope="connection-tokens:revoke",
            answer=DisconnectAccepted,
            problems=(
                PolicyDeniedError,
                NotFoundError,
                IdempotencyConflictError,
                StoreUnavailableError,
            ),
        )
    ),
)
async def revoke_connection_token(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Store the revocation; IVS is asked (RevokeConnectionToken) until it has taken it.

    Whoever is connected with the token is disconnected, and nobody connects with it again.
    """
    service = service_of(request)
    facts = await authorize(request, service, "connection-tokens:revoke")
    service.gate.require_connections(facts.caller_name)
    token_id: str = request.path_params["token_id"]
    facts.about = {"tokenId": token_id}
    ref = request_ref(facts, "connection-tokens:revoke", token_id.encode())
    token = await service.revocations.connection_token(token_id)
    if token.caller_id != facts.caller_id:
        service.gate.require_connections(facts.caller_name, of_others=True)
    accepted = await service.revocations.revoke(token, caller_id=facts.caller_id, ref=ref)
    facts.about["disconnectId"] = accepted.disconnect_id
    answer = DisconnectAccepted.of(accepted)
    return ASGIResponse(
        body=_encode(answer),
        status_code=202,
        media_type=_JSON,
        headers={"location": f"/v1/disconnects/{accepted.disconnect_id}"},
    )


CONNECTION_ROUTES: Final = (mint_connection_token, revoke_connection_token)
