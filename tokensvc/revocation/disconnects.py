"""What may be asked to be disconnected, and what becomes of it; values without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Self, TypeAlias

from tokensvc.errors import FieldError, InvalidRequestError
from tokensvc.revocation.bans import BanKind
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.ids import is_token_id
from tokensvc.tokens.limits import MAX_USER_ID_CHARS

__all__ = [
    "MAX_BAN_SECONDS",
    "MAX_REASON_CHARS",
    "CallState",
    "Disconnect",
    "DisconnectAsk",
    "DisconnectKind",
    "DisconnectProgress",
    "ParticipantProgress",
]

DisconnectKind: TypeAlias = Literal["participant", "user", "stage", "connection_token", "key"]
CallState: TypeAlias = Literal["pending", "disconnected", "not_connected", "expired", "failed"]

MAX_REASON_CHARS: Final = 128
"""Of DisconnectParticipant's `reason` (API model)."""
MAX_BAN_SECONDS: Final = 10 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class DisconnectAsk:
    """A valid request to disconnect somebody; made by the class methods, which raise InvalidRequestError.

    `target_id` is a participant id, a connection token's id, or the id of one of our keys. `ban` is in
    seconds: who is disconnected may not be issued a token for that long, 0 for good, None not at all.
    """

    kind: DisconnectKind
    region: str
    stage_arn: str | None = None
    user_id: str | None = None
    target_id: str | None = None
    reason: str = ""
    ban: int | None = None

    @classmethod
    def of_participant(
        cls, stage: StageArn, participant_id: str, *, reason: str = "", ban: int | None = None
    ) -> Self:
        """Disconnect one participant. A ban is the participant's: its user may come as another one."""
        return cls(
            "participant",
            stage.region,
            str(stage),
            target_id=participant_id,
            reason=reason,
            ban=ban,
        )

    @classmethod
    def of_user(
        cls, stage: StageArn, user_id: str, *, reason: str = "", ban: int | None = None
    ) -> Self:
        """Disconnect a user on a stage: every living token, and whoever is connected under that id."""
        return cls("user", stage.region, str(stage), user_id=user_id, reason=reason, ban=ban)

    @classmethod
    def of_stage(cls, stage: StageArn, *, reason: str = "", ban: int | None = None) -> Self:
        """Disconnect everybody on a stage."""
        return cls("stage", stage.region, str(stage), reason=reason, ban=ban)

    @classmethod
    def of_connection_token(cls, region: str, token_id: str) -> Self:
        """Revoke a connection token (RevokeConnectionToken), and disconnect whoever uses it."""
        return cls("connection_token", region, target_id=token_id)

    @classmethod
    def of_key(cls, region: str, key_id: str, *, reason: str = "") -> Self:
        """Disconnect every participant, and revoke every connection token, whose token a key signed."""
        return cls("key", region, target_id=key_id, reason=reason)

    def __post_init__(self) -> None:
        faults = []
        if self.kind in {"participant", "connection_token"} and not is_token_id(
            self.target_id or ""
        ):
            field = "participantId" if self.kind == "participant" else "tokenId"
            faults.append(
                FieldError(field, "invalid", "is not 1 to 64 characters of A-Z a-z 0-9 _ -", 64)
            )
        if self.user_id is not None and not 0 < len(self.user_id) <= MAX_USER_ID_CHARS:
            detail = f"must have 1 to {MAX_USER_ID_CHARS} characters"
            faults.append(FieldError("userId", "invalid", detail, MAX_USER_ID_CHARS))
        if len(self.reason) > MAX_REASON_CHARS:
            detail = f"has {len(self.reason)} characters; IVS allows {MAX_REASON_CHARS}"
            faults.append(FieldError("reason", "too_long", detail, MAX_REASON_CHARS))
        if self.ban is not None and not 0 <= self.ban <= MAX_BAN_SECONDS:
            detail = f"is {self.ban} seconds; 0 (for good) to {MAX_BAN_SECONDS} are allowed"
            faults.append(FieldError("ban", "out_of_range", detail, MAX_BAN_SECONDS))
        if faults:
            text = "; ".join(f"{fault.field}: {fault.detail}" for fault in faults)
            raise InvalidRequestError(text, errors=tuple(faults))

    @property
    def ban_kind(self) -> BanKind:
        """What a ban that comes with this request is of."""
        kinds: dict[str, BanKind] = {
            "participant": "participant",
            "user": "user_on_stage",
            "stage": "stage",
        }
        return kinds[self.kind]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A stored request. `next_sweep_at` is None once everybody it means is known."""

    disconnect_id: str
    kind: DisconnectKind
    region: str
    stage_arn: str | None
    user_id: str | None
    target_id: str | None
    reason: str
    ban_id: str | None
    caller_id: str | None
    created_at: float
    next_sweep_at: float | None
    sweeps: int
    failed_sweeps: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ParticipantProgress:
    """What became of one participant (or connection token) of a request.

    `disconnected`: IVS took the call. `not_connected`: IVS knows no such participant now; while its
    token lives and a ban stands, that is a `pending` one with `last_error` `not_connected`, and is
    tried again. `expired`: the token's time is over and nobody is connected with it. `failed`: IVS
    refuses the call for good; `last_error` is an error code.
    """

    target_id: str
    operation: Literal["disconnect", "revoke"]
    state: CallState
    attempts: int
    next_attempt_at: float | None
    last_error: str | None
    updated_at: float


@dataclass(frozen=True, slots=True)
class DisconnectProgress:
    """Where a request stands. `counts` is by state; `expected_completion` in Unix seconds, None if done.

    `participants` is a page by id; `next_cursor` is None on the last.
    """

    disconnect: Disconnect
    done: bool
    counts: dict[CallState, int]
    expected_completion: float | None
    participants: tuple[ParticipantProgress, ...]
    next_cursor: str | None
