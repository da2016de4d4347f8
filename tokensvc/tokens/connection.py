"""Connection tokens (RealTimeUserGuide, "Stage switching"): one connection for many stages.

A connection token opens a `RealTimeConnection` of one AWS account and Region; the participant tokens of
the stages that use it stay what they are. It says nothing of stages, users or capabilities.
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
    parse_duration,
    parse_object,
    parse_stage_arn,
    parse_user_id,
    region_not_served,
    too_long,
    wrong_type,
)
from tokensvc.tokens.limits import (
    DEFAULT_DURATION_MINUTES,
    MAX_CONNECTION_DURATION_MINUTES,
    TOKEN_VERSION,
)

__all__ = [
    "CONNECTION_EVENTS_URL",
    "ConnectionRequest",
    "WantedConnection",
    "complete_connection",
    "connection_claims",
    "parse_connection_request",
]

CONNECTION_EVENTS_URL: Final = "wss://global.events.live-video.net"
"""What `events_url` of a connection token must be [D]; only the emulator has another."""


@dataclass(frozen=True, slots=True)
class ConnectionRequest:
    """One connection token, asked for within all limits; `duration` is in minutes.

    `account` is the AWS account of the stages where it was given; `user_id` is for the ledger and for
    bans and does not get into the token.
    """

    region: str
    account: str | None = None
    user_id: str | None = None
    duration: int = DEFAULT_DURATION_MINUTES


@dataclass(frozen=True, slots=True)
class WantedConnection:
    """What a caller asks for; `duration` None is left to the policy. `stage` is in `region`."""

    region: str
    stage: StageArn | None = None
    user_id: str | None = None
    duration: int | None = None


def complete_connection(wanted: WantedConnection, duration: int | None = None) -> ConnectionRequest:
    """Return the request to issue; `duration` (minutes) stands where `wanted` has none."""
    return ConnectionRequest(
        region=wanted.region,
        account=None if wanted.stage is None else wanted.stage.account,
        user_id=wanted.user_id,
        duration=wanted.duration or duration or DEFAULT_DURATION_MINUTES,
    )


def connection_claims(
    *, token_id: str, account: str, region: str, events_url: str, iat: int, exp: int
) -> dict[str, object]:
    """Return the payload of a connection token; `iat` and `exp` are whole Unix seconds."""
    return {
        "exp": exp,
        "iat": iat,
        "jti": token_id,
        "account_id": account,
        "region": region,
        "events_url": events_url,
        "version": TOKEN_VERSION,
    }


def parse_connection_request(
    body: object,
    *,
    regions: Collection[str],
    max_duration: int = MAX_CONNECTION_DURATION_MINUTES,
) -> WantedConnection:
    """Parse a request: `region`, or `stageArn` for that stage's account and Region.

    Raises InvalidRequestError with one entry in `errors` for every bad field.
    """
    errors: list[FieldError] = []
    values = parse_object(body, _PARSERS, "a connection token request", errors)
    stage: StageArn | None = values.get("stageArn")
    region: str | None = values.get("region", stage.region if stage else None)
    if region is None and not errors:
        errors.append(FieldError("region", "required", "is required, or stageArn in its place"))
    if region is not None and region not in regions:
        errors.append(region_not_served("stageArn" if stage else "region", region, regions))
    if stage is not None and region != stage.region:
        errors.append(FieldError("region", "mismatch", f"is not {stage.region}, the stage's"))
    duration: int | None = values.get("duration")
    if duration is not None and duration > max_duration:
        errors.append(
            too_long(
                duration,
                max_duration,
                ivs_allows=MAX_CONNECTION_DURATION_MINUTES,
                setting="TOKENSVC_MAX_CONNECTION_DURATION",
            )
        )
    if errors or region is None:
        raise invalid_fields(errors)
    return WantedConnection(region, stage, values.get("userId"), duration)


def _parse_region(value: object, errors: list[FieldError]) -> str | None:
    if type(value) is not str:
        errors.append(wrong_type("region", "a string", value))
        return None
    return value


_PARSERS: Final[Mapping[str, FieldParser]] = {
    "region": _parse_region,
    "stageArn": parse_stage_arn,
    "userId": parse_user_id,
    "duration": parse_duration,
}
