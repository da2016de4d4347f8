"""Requests and answers as `/schema` shows them.

The answers are encoded from these very types. The requests are parsed by `tokensvc.tokens.validate`,
which reports every bad field at once; the types here state the same rules with the same numbers, and
a test holds the two against each other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from tokensvc.http.problems import Problem
from tokensvc.issuing.issued import IssuedToken
from tokensvc.revocation import Accepted
from tokensvc.tokens.limits import (
    CAPABILITIES,
    DEFAULT_DURATION_MINUTES,
    MAX_ARN_CHARS,
    MAX_ATTRIBUTES_BYTES,
    MAX_CONNECTION_DURATION_MINUTES,
    MAX_DURATION_MINUTES,
    MAX_ROLE_CHARS,
    MAX_TOKEN_CHARS,
    MAX_TOKEN_ID_CHARS,
    MAX_USER_ID_CHARS,
    MIN_DURATION_MINUTES,
)

__all__ = [
    "BatchAnswer",
    "BatchRequest",
    "CheckAnswer",
    "ConnectionTokenRequest",
    "DisconnectAccepted",
    "ExchangeTokenRequest",
    "FindingAnswer",
    "InspectRequest",
    "InspectionAnswer",
    "LivenessAnswer",
    "MintDefaults",
    "MintRequest",
    "ReadinessAnswer",
    "RefusedItem",
]

StageArnText = Annotated[
    str,
    Meta(
        pattern=r"^arn:aws:ivs:[a-z0-9-]+:[0-9]+:stage/[a-zA-Z0-9-]+$",
        max_length=MAX_ARN_CHARS,
        description="ARN of the stage, in a Region that this service serves.",
    ),
]
UserId = Annotated[
    str,
    Meta(
        max_length=MAX_USER_ID_CHARS,
        description=f"At most {MAX_USER_ID_CHARS} characters; visible to all participants.",
    ),
]
Role = Annotated[
    str,
    Meta(
        pattern=rf"^[A-Za-z0-9_-]{{1,{MAX_ROLE_CHARS}}}$",
        description=(
            "A role of the operator's policy file; it brings capabilities, duration and attributes."
        ),
    ),
]
Duration = Annotated[
    int,
    Meta(
        ge=MIN_DURATION_MINUTES,
        le=MAX_DURATION_MINUTES,
        description=(
            f"Minutes until the token expires; {DEFAULT_DURATION_MINUTES} where left out. The"
            " operator may allow less (TOKENSVC_MAX_DURATION)."
        ),
    ),
]
ConnectionDuration = Annotated[
    int,
    Meta(
        ge=MIN_DURATION_MINUTES,
        le=MAX_CONNECTION_DURATION_MINUTES,
        description=(
            f"Minutes until the token expires; {DEFAULT_DURATION_MINUTES} where left out. The"
            " operator may allow less (TOKENSVC_MAX_CONNECTION_DURATION)."
        ),
    ),
]
RegionText = Annotated[str, Meta(description="A Region that this service serves.")]
TokenId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        max_length=MAX_TOKEN_ID_CHARS,
        description="A participant id, which is the `jti` of the participant's token.",
    ),
]
Capabilities = Annotated[
    list[Literal["PUBLISH", "SUBSCRIBE"]],
    Meta(
        max_length=len(CAPABILITIES),
        description="What the participant may do; both where left out.",
        extra_json_schema={"uniqueItems": True},
    ),
]
Attributes = Annotated[
    dict[str, str],
    Meta(
        description=(
            f"Keys and values together have at most {MAX_ATTRIBUTES_BYTES} bytes of UTF-8;"
            " visible to all participants."
        )
    ),
]
IssuerChoice = Annotated[
    Literal["auto", "local", "ivs"],
    Meta(
        description=(
            "`local` signs here or fails; `ivs` asks CreateParticipantToken; `auto`, the default,"
            " signs here and falls back to `ivs` where the Region has no usable key."
        )
    ),
]


class MintDefaults(Struct, rename="camel", forbid_unknown_fields=True):
    """Fields of a token request; `stageArn` is required in the item or in the defaults."""

    stage_arn: StageArnText | UnsetType | None = UNSET
    user_id: UserId | UnsetType | None = UNSET
    role: Role | UnsetType | None = UNSET
    duration: Duration | UnsetType | None = UNSET
    capabilities: Capabilities | UnsetType | None = UNSET
    attributes: Attributes | UnsetType | None = UNSET
    issuer: IssuerChoice | UnsetType | None = UNSET


class MintRequest(MintDefaults, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One participant token. `null` counts as left out."""

    stage_arn: StageArnText


class BatchRequest(Struct, forbid_unknown_fields=True):
    """Many participant tokens; a field that an item leaves out comes from `defaults`."""

    tokens: Annotated[list[MintDefaults], Meta(max_length=1000)]
    defaults: MintDefaults | UnsetType | None = UNSET


class ExchangeTokenRequest(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Another token of a participant; `userId` left out keeps the one of the token before."""

    participant_id: TokenId
    stage_arn: StageArnText | UnsetType | None = UNSET
    user_id: UserId | UnsetType | None = UNSET
    role: Role | UnsetType | None = UNSET
    duration: Duration | UnsetType | None = UNSET
    capabilities: Capabilities | UnsetType | None = UNSET
    attributes: Attributes | UnsetType | None = UNSET


class ConnectionTokenRequest(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A connection token: of `region`, or of the account and Region of `stageArn`."""

    region: RegionText | UnsetType | None = UNSET
    stage_arn: StageArnText | UnsetType | None = UNSET
    user_id: UserId | UnsetType | None = UNSET
    duration: ConnectionDuration | UnsetType | None = UNSET


class DisconnectAccepted(Struct, rename="camel"):
    """What was stored; `expectedCompletion` is an estimate from what is queued."""

    disconnect_id: str
    ban_id: str | None
    expected_completion: datetime

    @classmethod
    def of(cls, accepted: Accepted) -> DisconnectAccepted:
        """Return the answer that tells of `accepted`."""
        expected = datetime.fromtimestamp(accepted.expected_completion, UTC)
        return cls(accepted.disconnect_id, accepted.ban_id, expected)


class RefusedItem(Struct):
    """The answer to a batch item that got no token."""

    problem: Problem


BatchItemAnswer = Annotated[
    Raw,
    Meta(
        extra_json_schema={
            "anyOf": [
                {"$ref": f"#/components/schemas/{kind.__name__}"}
                for kind in (IssuedToken, RefusedItem)
            ]
        }
    ),
]


class BatchAnswer(Struct):
    """One answer for each item, in the order asked: a token, or the problem why there is none."""

    tokens: list[BatchItemAnswer]
    issued: int
    failed: int


class InspectRequest(Struct, forbid_unknown_fields=True):
    """A token to look into; it is neither stored nor logged."""

    token: Annotated[str, Meta(max_length=MAX_TOKEN_CHARS)]


class FindingAnswer(Struct):
    """One thing about a token, in words; `refused` means that IVS or the SDK refuses it for this."""

    code: str
    where: str
    detail: str
    severity: Literal["refused", "warning"]


class InspectionAnswer(Struct, rename="camel"):
    """What the token says, and what IVS would say to it."""

    acceptable: bool
    kind: Literal["participant", "connection", "ivs-issued", "unknown"]
    signature: Literal["valid", "invalid", "not_checked"]
    header: dict[str, Any] | None
    claims: dict[str, Any] | None
    findings: list[FindingAnswer]


class LivenessAnswer(Struct):
    """Whether this process can go on; false where only a restart helps. Of all else `/readyz` tells."""

    alive: bool


class CheckAnswer(Struct):
    """One thing that was looked at; a `required` one must be ok for the process to be ready."""

    name: str
    ok: bool
    required: bool
    detail: str


class ReadinessAnswer(Struct):
    """Ready only where every required check is ok."""

    ready: bool
    checks: list[CheckAnswer]
