"""Keeping out: the routes under `/v1/bans`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from litestar import Request, delete, get, post

from tokensvc.errors import (
    InvalidRequestError,
    NotFoundError,
    PolicyDeniedError,
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
    STAGE_ARN_SCHEMA,
    TOKEN_ID_SCHEMA,
    parse_flag,
    query_of,
    stage_arn_text,
)
from tokensvc.http.revocation_structs import (
    BanAnswer,
    BanRequest,
    BansAnswer,
    LiftedBans,
)
from tokensvc.http.service import authorize, service_of
from tokensvc.revocation.ban_store import MAX_LIFTED
from tokensvc.revocation.bans import Ban
from tokensvc.revocation.requests import (
    BanSubject,
    parse_ban_request,
    parse_ban_subject,
    parse_some_user_id,
)
from tokensvc.tokens.fields import FieldParser, parse_token_id

__all__ = ["BAN_ROUTES"]

_READ: Final = "bans:read"
_WRITE: Final = "bans:write"
_SUBJECT: Final = (
    {
        "name": "stageArn",
        "required": False,
        "description": "Bans of this stage, and of users on it.",
        "schema": STAGE_ARN_SCHEMA,
    },
    {
        "name": "userId",
        "required": False,
        "description": "Bans of this user.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    {
        "name": "participantId",
        "required": False,
        "description": "Bans of this participant.",
        "schema": TOKEN_ID_SCHEMA,
    },
)
_SUBJECT_PARSERS: Final[Mapping[str, FieldParser]] = {
    "stageArn": stage_arn_text,
    "userId": parse_some_user_id,
    "participantId": parse_token_id("participantId"),
}


@post(
    "/v1/bans",
    status_code=201,
    summary="Ban a user, a participant, or a stage",
    opt=documented(
        RouteDoc(
            operation_id="ban",
            scope=_WRITE,
            request=BanRequest,
            answer=BanAnswer,
            request_examples=examples.BAN,
            answer_examples=examples.BAN_ANSWER,
            problems=STORING_PROBLEMS,
        )
    ),
)
async def ban(request: Request[Any, Any, Any]) -> Answer:
    """Issue no token to whom this means; who is connected stays, see `POST /v1/disconnects`.

    It holds here when this is answered, and on every replica within a second.
    """
    service = service_of(request)
    facts = await authorize(request, service, _WRITE)
    body = await read_json_body(request, service.max_body_bytes)
    ask = parse_ban_request(decode_json(body), regions=service.regions, now=service.clock())
    facts.about = _of_subject(ask.subject) | {"until": ask.until, "reason": ask.reason or None}
    await require_subject(
        service,
        facts,
        stage_arn=ask.subject.stage_arn,
        participant_id=ask.subject.participant_id,
    )
    made = await service.revocations.ban(
        stage_arn=ask.subject.stage_arn,
        user_id=ask.subject.user_id,
        participant_id=ask.subject.participant_id,
        until=ask.until,
        reason=ask.reason,
        caller_id=facts.caller_id,
        ref=request_ref(facts, "bans", body),
    )
    facts.about["banId"] = made.ban_id
    return answer_of(BanAnswer.of(made), 201, f"/v1/bans/{made.ban_id}")


@get(
    "/v1/bans",
    summary="List the bans that stand",
    opt=documented(
        RouteDoc(
            operation_id="listBans",
            scope=_READ,
            query=(*_SUBJECT, CURSOR, LIMIT),
            answer=BansAnswer,
            answer_examples=examples.BANS_ANSWER,
            problems=(InvalidRequestError, StoreUnavailableError),
        )
    ),
)
async def list_bans(request: Request[Any, Any, Any]) -> Answer:
    """Show who may not be issued a token now, for which stage, and until when."""
    service = service_of(request)
    await authorize(request, service, _READ)
    query = query_of(request, {**_SUBJECT_PARSERS, **PAGE}, "a list of bans")
    limit = query.get("limit", DEFAULT_LIMIT)
    found = await service.revocations.standing_bans(
        stage_arn=query.get("stageArn"),
        user_id=query.get("userId"),
        participant_id=query.get("participantId"),
        after=query.get("cursor", ""),
        limit=limit + 1,
    )
    page = [BanAnswer.of(one) for one in found[:limit]]
    return answer_of(BansAnswer(page, page[-1].ban_id if len(found) > limit else None))


@get(
    "/v1/bans/{ban_id:str}",
    summary="Show one ban",
    opt=documented(
        RouteDoc(
            operation_id="getBan",
            scope=_READ,
            answer=BanAnswer,
            problems=(NotFoundError, StoreUnavailableError),
        )
    ),
)
async def get_ban(request: Request[Any, Any, Any]) -> Answer:
    """Show a ban; one that has ended or was lifted is still known for a day."""
    service = service_of(request)
    await authorize(request, service, _READ)
    return answer_of(
        BanAnswer.of(await service.revocations.find_ban(request.path_params["ban_id"]))
    )


@delete(
    "/v1/bans/{ban_id:str}",
    status_code=200,
    summary="Lift one ban",
    opt=documented(
        RouteDoc(
            operation_id="liftBan",
            scope=_WRITE,
            answer=BanAnswer,
            problems=(PolicyDeniedError, NotFoundError, StoreUnavailableError),
        )
    ),
)
async def lift_ban(request: Request[Any, Any, Any]) -> Answer:
    """Lift a ban, on every replica within a second; one that was lifted before stays so.

    Whoever was disconnected needs a new participant: IVS takes no token under the old id again.
    """
    service = service_of(request)
    facts = await authorize(request, service, _WRITE)
    ban_id: str = request.path_params["ban_id"]
    facts.about = {"banId": ban_id}
    if not service.gate.is_open:
        found = await service.revocations.find_ban(ban_id)
        facts.about |= _of_subject(found)
        await require_subject(
            service, facts, stage_arn=found.stage_arn, participant_id=found.participant_id
        )
    lifted = await service.revocations.lift(ban_id)
    facts.about |= _of_subject(lifted)
    return answer_of(BanAnswer.of(lifted))


@delete(
    "/v1/bans",
    status_code=200,
    summary="Lift every ban of a user, a participant, or a stage",
    opt=documented(
        RouteDoc(
            operation_id="liftBans",
            scope=_WRITE,
            query=(
                *_SUBJECT,
                {
                    "name": "everybody",
                    "required": False,
                    "description": "`true` with `stageArn` alone: the bans of the stage itself.",
                    "schema": {"type": "boolean"},
                },
            ),
            answer=LiftedBans,
            problems=(PolicyDeniedError, InvalidRequestError, StoreUnavailableError),
        )
    ),
)
async def lift_bans(request: Request[Any, Any, Any]) -> Answer:
    """Lift the bans of exactly what is named, as it is named to `POST /v1/bans`.

    A user's bans on a stage are not those of the user everywhere, nor those of the stage.
    """
    service = service_of(request)
    facts = await authorize(request, service, _WRITE)
    query = query_of(
        request, {**_SUBJECT_PARSERS, "everybody": parse_flag("everybody")}, "a lift of bans"
    )
    subject = parse_ban_subject(query, regions=service.regions)
    facts.about = _of_subject(subject)
    await require_subject(
        service, facts, stage_arn=subject.stage_arn, participant_id=subject.participant_id
    )
    lifted = await service.revocations.lift_of(
        stage_arn=subject.stage_arn,
        user_id=subject.user_id,
        participant_id=subject.participant_id,
    )
    facts.about["banIds"] = [one.ban_id for one in lifted]
    answer = [BanAnswer.of(one) for one in lifted]
    return answer_of(LiftedBans(answer, complete=len(answer) < MAX_LIFTED))


BAN_ROUTES: Final = (ban, list_bans, get_ban, lift_ban, lift_bans)


def _of_subject(subject: BanSubject | Ban) -> dict[str, Any]:
    return {
        "stageArn": subject.stage_arn,
        "user_id": subject.user_id,
        "participantId": subject.participant_id,
    }
