"""Kicking out: the routes under `/v1/disconnects`.

What is answered is stored; IVS is asked by the worker of the Region, within its quota.
"""

from __future__ import annotations

from typing import Any, Final

from litestar import Request, get, post

from tokensvc.errors import (
    InvalidRequestError,
    NotFoundError,
    StoreUnavailableError,
)
from tokensvc.http import examples
from tokensvc.http.answers import Answer, answer_of
from tokensvc.http.bodies import decode_json, read_json_body
from tokensvc.http.caller_policy import require_subject
from tokensvc.http.idempotency import request_ref
from tokensvc.http.openapi import STORING_PROBLEMS, RouteDoc, documented
from tokensvc.http.queries import (
    CURSOR,
    DEFAULT_LIMIT,
    LIMIT,
    PAGE,
    query_of,
)
from tokensvc.http.revocation_structs import (
    DisconnectAnswer,
    DisconnectRequest,
)
from tokensvc.http.service import authorize, service_of
from tokensvc.http.structs import DisconnectAccepted
from tokensvc.revocation.requests import (
    parse_disconnect_request,
)

__all__ = ["DISCONNECT_ROUTES"]

_DISCONNECT: Final = "participants:disconnect"
_REVOKE: Final = "connection-tokens:revoke"


@post(
    "/v1/disconnects",
    status_code=202,
    summary="Disconnect a participant, a user, or everybody on a stage",
    opt=documented(
        RouteDoc(
            operation_id="disconnect",
            scope=_DISCONNECT,
            request=DisconnectRequest,
            answer=DisconnectAccepted,
            request_examples=examples.DISCONNECT,
            answer_examples=examples.DISCONNECT_ACCEPTED,
            problems=STORING_PROBLEMS,
        )
    ),
)
async def disconnect(request: Request[Any, Any, Any]) -> Answer:
    """Store the request, and its ban; IVS is asked (DisconnectParticipant) until it has taken each.

    A user means every living token of that user, and whoever is connected under that id. A ban holds
    here when this is answered, and on every replica within a second. `Location` is where to look how
    far it is.
    """
    service = service_of(request)
    facts = await authorize(request, service, _DISCONNECT)
    body = await read_json_body(request, service.max_body_bytes)
    ask = parse_disconnect_request(decode_json(body), regions=service.regions)
    facts.about = {
        "kind": ask.kind,
        "stageArn": ask.stage_arn,
        "user_id": ask.user_id,
        "participantId": ask.target_id,
        "reason": ask.reason or None,
        "ban": ask.ban,
    }
    await require_subject(service, facts, stage_arn=ask.stage_arn, participant_id=ask.target_id)
    accepted = await service.revocations.disconnect(
        ask, caller_id=facts.caller_id, ref=request_ref(facts, "disconnects", body)
    )
    facts.about.update(disconnectId=accepted.disconnect_id, banId=accepted.ban_id)
    return answer_of(
        DisconnectAccepted.of(accepted), 202, f"/v1/disconnects/{accepted.disconnect_id}"
    )


@get(
    "/v1/disconnects/{disconnect_id:str}",
    summary="Show how far a disconnect is",
    opt=documented(
        RouteDoc(
            operation_id="getDisconnect",
            scope=_DISCONNECT,
            query=(CURSOR, LIMIT),
            answer=DisconnectAnswer,
            answer_examples=examples.DISCONNECT_PROGRESS,
            problems=(InvalidRequestError, NotFoundError, StoreUnavailableError),
        )
    ),
)
async def get_disconnect(request: Request[Any, Any, Any]) -> Answer:
    """Show the state of each participant, or of the connection token, that a request means.

    The scope `connection-tokens:revoke` will do as well.
    """
    service = service_of(request)
    await authorize(request, service, _DISCONNECT, _REVOKE)
    query = query_of(request, PAGE, "a disconnect's progress")
    progress = await service.revocations.progress(
        request.path_params["disconnect_id"],
        cursor=query.get("cursor"),
        limit=query.get("limit", DEFAULT_LIMIT),
    )
    return answer_of(DisconnectAnswer.of(progress))


DISCONNECT_ROUTES: Final = (disconnect, get_disconnect)
