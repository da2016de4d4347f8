"""Requests and answers about disconnects and bans as `/schema` shows them, and `tokensvc` prints them.

The requests are parsed by `tokensvc.revocation.requests`; a test holds the types here against it. All
times are RFC 3339 in UTC, lengths of time are seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from tokensvc.http.structs import StageArnText, TokenId
from tokensvc.revocation import Ban, BanKind, DisconnectProgress, ParticipantProgress
from tokensvc.revocation.disconnects import (
    MAX_BAN_SECONDS,
    MAX_REASON_CHARS,
    CallState,
    DisconnectKind,
)
from tokensvc.tokens.limits import MAX_USER_ID_CHARS

__all__ = [
    "BanAnswer",
    "BanRequest",
    "BansAnswer",
    "DisconnectAnswer",
    "DisconnectCounts",
    "DisconnectRequest",
    "LiftedBans",
    "ParticipantAnswer",
    "moment_of",
]

_SomeUserId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_USER_ID_CHARS,
        description="The user's id, as in the tokens.",
    ),
]
_Everybody = Annotated[
    bool,
    Meta(
        description=(
            "`true` where everybody on the stage is meant; without it a `stageArn` alone is refused."
        )
    ),
]
_Reason = Annotated[
    str, Meta(max_length=MAX_REASON_CHARS, description="Told to IVS and kept with the ban.")
]
_Seconds = Annotated[
    int,
    Meta(ge=0, le=MAX_BAN_SECONDS, description="How long the ban stands, in seconds; 0: for good."),
]


class DisconnectRequest(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Whom to disconnect: exactly one of `participantId`, `userId` and `everybody`.

    With `ban`, nobody who is meant is issued a token for that stage for so long; a participant's ban is
    of that participant id only, and its user may come as another one.
    """

    stage_arn: StageArnText
    participant_id: TokenId | UnsetType | None = UNSET
    user_id: _SomeUserId | UnsetType | None = UNSET
    everybody: _Everybody | UnsetType | None = UNSET
    reason: _Reason | UnsetType | None = UNSET
    ban: _Seconds | UnsetType | None = UNSET


class ParticipantAnswer(Struct, rename="camel"):
    """What became of one participant, or of one connection token.

    `disconnected`: IVS has taken it. `pending`: it has not yet; `lastError` is `not_connected` where it
    knows no such participant, who is tried again while its token lives and a ban stands.
    `not_connected`: the same where no ban stands. `expired`: the token is over, and nobody is connected
    with it. `failed`: IVS refuses the call for good, and `lastError` says with what.
    """

    participant_id: str | None
    token_id: str | None
    state: CallState
    attempts: int
    next_attempt_at: datetime | None
    last_error: str | None
    updated_at: datetime

    @classmethod
    def of(cls, progress: ParticipantProgress) -> ParticipantAnswer:
        """Return the answer that tells of `progress`."""
        revokes = progress.operation == "revoke"
        return cls(
            participant_id=None if revokes else progress.target_id,
            token_id=progress.target_id if revokes else None,
            state=progress.state,
            attempts=progress.attempts,
            next_attempt_at=moment_of(progress.next_attempt_at),
            last_error=progress.last_error,
            updated_at=_moment(progress.updated_at),
        )


class DisconnectCounts(Struct, rename="camel"):
    """How many participants are in each state."""

    pending: int = 0
    disconnected: int = 0
    not_connected: int = 0
    expired: int = 0
    failed: int = 0


class DisconnectAnswer(Struct, rename="camel"):
    """Where a disconnect stands, with a page of those it means.

    Until it is `done`, more of them may be found. `lastError` is the code of what kept IVS from saying
    who is connected. `expectedCompletion` is null once it is done.
    """

    disconnect_id: str
    kind: DisconnectKind
    region: str
    stage_arn: str | None
    user_id: str | None
    reason: str
    ban_id: str | None
    created_at: datetime
    done: bool
    expected_completion: datetime | None
    counts: DisconnectCounts
    last_error: str | None
    participants: list[ParticipantAnswer]
    next_cursor: str | None

    @classmethod
    def of(cls, progress: DisconnectProgress) -> DisconnectAnswer:
        """Return the answer that tells of `progress`."""
        request = progress.disconnect
        return cls(
            disconnect_id=request.disconnect_id,
            kind=request.kind,
            region=request.region,
            stage_arn=request.stage_arn,
            user_id=request.user_id,
            reason=request.reason,
            ban_id=request.ban_id,
            created_at=_moment(request.created_at),
            done=progress.done,
            expected_completion=moment_of(progress.expected_completion),
            counts=DisconnectCounts(**progress.counts),
            last_error=request.last_error,
            participants=[ParticipantAnswer.of(one) for one in progress.participants],
            next_cursor=progress.next_cursor,
        )


class BanRequest(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Whom to ban: `userId` (with `stageArn`, on that stage only), `participantId`, or a `stageArn`.

    A stage is banned by `stageArn` with `"everybody": true`. For `duration`, or `until`; for good where
    neither is given.
    """

    stage_arn: StageArnText | UnsetType | None = UNSET
    user_id: _SomeUserId | UnsetType | None = UNSET
    participant_id: TokenId | UnsetType | None = UNSET
    everybody: _Everybody | UnsetType | None = UNSET
    duration: _Seconds | UnsetType | None = UNSET
    until: Annotated[datetime, Meta(tz=True)] | UnsetType | None = UNSET
    reason: _Reason | UnsetType | None = UNSET


class BanAnswer(Struct, rename="camel"):
    """A ban; `until` is null where it is for good, `liftedAt` where it was not lifted."""

    ban_id: str
    kind: BanKind
    stage_arn: str | None
    user_id: str | None
    participant_id: str | None
    until: datetime | None
    reason: str
    caller_id: str | None
    created_at: datetime
    lifted_at: datetime | None

    @classmethod
    def of(cls, ban: Ban) -> BanAnswer:
        """Return the answer that tells of `ban`."""
        return cls(
            ban_id=ban.ban_id,
            kind=ban.kind,
            stage_arn=ban.stage_arn,
            user_id=ban.user_id,
            participant_id=ban.participant_id,
            until=moment_of(ban.until),
            reason=ban.reason,
            caller_id=ban.caller_id,
            created_at=_moment(ban.created_at),
            lifted_at=moment_of(ban.lifted_at),
        )


class BansAnswer(Struct, rename="camel"):
    """Bans that stand, by id; `nextCursor` is null on the last page."""

    bans: list[BanAnswer]
    next_cursor: str | None


class LiftedBans(Struct):
    """The bans that were lifted; `complete` is false where more stand, so ask again."""

    bans: list[BanAnswer]
    complete: bool


def moment_of(seconds: float | None) -> datetime | None:
    """Return a moment in Unix seconds as `/v1` shows it; None stays None."""
    return None if seconds is None else _moment(seconds)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
