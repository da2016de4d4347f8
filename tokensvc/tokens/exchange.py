"""Asking for another token of a participant who has one (RealTimeUserGuide, "Token Exchange").

The SDK's `exchangeToken()` takes a token with the same `jti`, `resource`, `topic`, `events_url` and
`whip_url`, and with whatever capabilities, attributes, user id and times it is to have from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from tokensvc.errors import FieldError
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.fields import (
    FieldParser,
    invalid_fields,
    parse_attributes,
    parse_capabilities,
    parse_duration,
    parse_object,
    parse_role,
    parse_stage_arn,
    parse_token_id,
    parse_user_id,
    region_not_served,
    require,
    too_long,
)
from tokensvc.tokens.limits import MAX_DURATION_MINUTES

__all__ = ["ExchangeRequest", "parse_exchange_request"]


@dataclass(frozen=True, slots=True)
class ExchangeRequest:
    """What the participant's next token is to say, each field valid; `duration` is in minutes.

    `user_id` None keeps the one of the token before; whatever else is None is filled in as for a
    `WantedToken`. `stage` is only for checking that the caller and the ledger mean the same.
    """

    participant_id: str
    stage: StageArn | None = None
    user_id: str | None = None
    role: str | None = None
    duration: int | None = None
    capabilities: tuple[str, ...] | None = None
    attributes: Mapping[str, str] | None = None


def parse_exchange_request(
    body: object, *, regions: Collection[str], max_duration: int = MAX_DURATION_MINUTES
) -> ExchangeRequest:
    """Parse a request; `max_duration` is in minutes.

    Raises InvalidRequestError with one entry in `errors` for every bad field.
    """
    errors: list[FieldError] = []
    values = parse_object(body, _PARSERS, "an exchange", errors)
    require("participantId", "the participant's id", values, errors)
    stage: StageArn | None = values.get("stageArn")
    if stage is not None and stage.region not in regions:
        errors.append(region_not_served("stageArn", stage.region, regions))
    duration: int | None = values.get("duration")
    if duration is not None and duration > max_duration:
        errors.append(too_long(duration, max_duration))
    if errors:
        raise invalid_fields(errors)
    return ExchangeRequest(
        participant_id=values["participantId"],
        stage=stage,
        user_id=values.get("userId"),
        role=values.get("role"),
        duration=duration,
        capabilities=values.get("capabilities"),
        attributes=values.get("attributes"),
    )


_PARSERS: Final[Mapping[str, FieldParser]] = {
    "participantId": parse_token_id("participantId"),
    "stageArn": parse_stage_arn,
    "userId": parse_user_id,
    "role": parse_role,
    "duration": parse_duration,
    "capabilities": parse_capabilities,
    "attributes": parse_attributes,
}
