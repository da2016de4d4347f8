"""What was issued: the route `GET /v1/tokens`.

The ledger holds no token, so none can be shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from litestar import Request, get
from litestar.response.base import ASGIResponse

from tokensvc.errors import InvalidRequestError, StoreUnavailableError
from tokensvc.http import examples
from tokensvc.http.openapi import RouteDoc, documented
from tokensvc.http.queries import (
    CURSOR,
    DEFAULT_LIMIT,
    LIMIT,
    PAGE,
    STAGE_ARN_SCHEMA,
    TOKEN_ID_SCHEMA,
    query_of,
    stage_arn_text,
)
from tokensvc.http.revocation_structs import moment_of
from tokensvc.http.service import authorize, service_of
from tokensvc.ledger import IssuedRecord
from tokensvc.tokens.fields import FieldParser, parse_token_id, parse_user_id

__all__ = ["LEDGER_ROUTES", "IssuedTokenAnswer", "IssuedTokensAnswer"]

_READ: Final = "tokens:read"
_PARSERS: Final[Mapping[str, FieldParser]] = {
    "stageArn": stage_arn_text,
    "userId": parse_user_id,
    "keyId": parse_token_id("keyId"),
    **PAGE,
}
_encode = msgspec.json.Encoder().encode


class IssuedTokenAnswer(msgspec.Struct, rename="camel"):
    """A token that has not expired.

    `tokenId` is its `jti`, a participant's id where `kind` is `participant`; after an exchange, a
    participant has several. `keyId` and `keyArn` are null where IVS issued it, `stageArn` for a
    connection token. `disconnectedAt` is when IVS took its disconnect or revocation.
    """

    token_id: str
    kind: Literal["participant", "connection"]
    stage_arn: str | None
    region: str
    user_id: str | None
    key_id: str | None
    key_arn: str | None
    caller_id: str | None
    issuer: Literal["local", "ivs"]
    issued_at: datetime
    expiration_time: datetime
    disconnected_at: datetime | None

    @classmethod
    def of(cls, record: IssuedRecord) -> IssuedTokenAnswer:
        """Return the answer that tells of `record`."""
        return cls(
            token_id=record.token_id,
            kind=record.kind,
            stage_arn=record.stage_arn,
            region=record.region,
            user_id=record.user_id,
            key_id=record.key_id,
            key_arn=record.key_arn,
            caller_id=record.caller_id,
            issuer="ivs" if record.issuer == "ivs" else "local",
            issued_at=datetime.fromtimestamp(record.iat, UTC),
            expiration_time=datetime.fromtimestamp(record.exp, UTC),
            disconnected_at=moment_of(record.disconnected_at),
        )


class IssuedTokensAnswer(msgspec.Struct, rename="camel"):
    """Living tokens, those that expire first first; `nextCursor` is null on the last page."""

    tokens: list[IssuedTokenAnswer]
    next_cursor: str | None


@get(
    "/v1/tokens",
    summary="List living tokens",
    opt=documented(
        RouteDoc(
            operation_id="listTokens",
            scope=_READ,
            query=(
                {
                    "name": "stageArn",
                    "required": False,
                    "description": "Tokens for this stage.",
                    "schema": STAGE_ARN_SCHEMA,
                },
                {
                    "name": "userId",
                    "required": False,
                    "description": "Tokens of this user.",
                    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
                },
                {
                    "name": "keyId",
                    "required": False,
                    "description": "Tokens that this key signed, by its id in `GET /v1/keys`.",
                    "schema": TOKEN_ID_SCHEMA,
                },
                CURSOR,
                LIMIT,
            ),
            answer=IssuedTokensAnswer,
            answer_examples=examples.ISSUED_TOKENS,
            problems=(InvalidRequestError, StoreUnavailableError),
        )
    ),
)
async def list_tokens(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Show what was issued and has not expired, whoever issued it; never the token itself."""
    service = service_of(request)
    await authorize(request, service, _READ)
    query = query_of(request, _PARSERS, "a list of tokens")
    page = await service.ledger.living(
        service.clock(),
        stage_arn=query.get("stageArn"),
        user_id=query.get("userId"),
        key_id=query.get("keyId"),
        cursor=query.get("cursor"),
        limit=query.get("limit", DEFAULT_LIMIT),
    )
    answer = IssuedTokensAnswer(
        [IssuedTokenAnswer.of(record) for record in page.tokens], page.next_cursor
    )
    return ASGIResponse(body=_encode(answer), media_type="application/json")


LEDGER_ROUTES: Final = (list_tokens,)
