"""Issues one participant token end to end: admitted, signed, recorded, and only then handed out.

A local token needs a signing key of the stage's Region and the stage's endpoints. Where the Region has
no key that may sign, a request with `issuer: auto` goes to CreateParticipantToken and its answer says
so: `issuer` is `ivs`, there is no `keyArn`, and the token can never be exchanged (IVS guide, "Token
Exchange"). No other failure falls back: a stage that does not exist does not exist there either, and
an error that is hidden behind a slow path is found late.

Whoever made a token, mint, batch, replay and exchange go through the same `admit`, once before any
work and once more when the ledger has the row: a ban that was answered meanwhile still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from tokensvc.errors import FieldError, InvalidRequestError, NoSigningKeyError
from tokensvc.issuing.issued import (
    Draft,
    Identity,
    IssuedToken,
    made_by_ivs,
    signed_here,
    signs_here,
)
from tokensvc.ivs.gateway import IvsToken
from tokensvc.ledger.idempotency import Claim
from tokensvc.ledger.row import LedgerRow
from tokensvc.ledger.waiting import Waiter
from tokensvc.signing.signing_key import SigningKey
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest
from tokensvc.tokens.ids import new_participant_id
from tokensvc.tokens.limits import MAX_PARTICIPANT_TTL_SECONDS

__all__ = [
    "OTHERS_AHEAD_SECONDS",
    "Admit",
    "AdmitsAll",
    "Recorder",
    "Signing",
    "StageLookup",
    "Taker",
    "TokenIssuer",
    "TokenSource",
    "View",
    "require_key_outlives",
]

OTHERS_AHEAD_SECONDS: Final = 30.0
"""By which the clock of another replica may be ahead, where a token is signed again."""


class View(Protocol):
    """The key ring as of now."""

    def signing_key(self, region: str) -> SigningKey:
        """Return the key that signs in `region`; raises NoSigningKeyError."""
        ...

    def longest_ttl(self, region: str) -> float:
        """Return how long, in seconds, a token of that key may live."""
        ...


class StageLookup(Protocol):
    """Where a stage's endpoints come from."""

    def peek(self, stage: StageArn, now: float) -> StageEndpoints | None:
        """Return the endpoints where they are fresh at `now` (Unix seconds), else None: then `get`."""
        ...

    async def get(self, stage: StageArn, caller: str) -> StageEndpoints:
        """Return the endpoints for a caller; raises StageNotFoundError or another IvsError."""
        ...


class TokenSource(Protocol):
    """IVS, as the fallback sees it."""

    async def create_participant_token(self, request: TokenRequest) -> IvsToken:
        """Let IVS make a token; raises IvsError."""
        ...


class Recorder(Protocol):
    """The ledger, as far as handing out needs it."""

    async def record(self, rows: Sequence[LedgerRow], claim: Claim | None = None) -> str | None:
        """Record `rows`, or return what another request has answered under the same claim."""
        ...

    def record_for(self, waiter: Waiter, row: LedgerRow, claim: Claim | None = None) -> None:
        """Record one row and tell `waiter`, as `record` would return or raise."""
        ...


class Admit(Protocol):
    """Who may be issued a token."""

    def __call__(
        self, stage_arn: str | None, user_id: str | None, participant_id: str | None = None
    ) -> None:
        """Return where a token may be issued.

        Raises BannedError, and StoreUnavailableError where it is not known who is banned.
        """
        ...


class AdmitsAll(Protocol):
    """The same of many users of a stage."""

    def __call__(
        self,
        stage_arn: str | None,
        user_ids: Sequence[str | None],
        participant_ids: Sequence[str] = (),
    ) -> bool:
        """Tell that `Admit` lets all of them pass; raises StoreUnavailableError as it does."""
        ...


class Taker(Protocol):
    """Who gets a token; raises nothing."""

    def hand_out(self, issued: IssuedToken) -> None:
        """Take the token, which may leave now."""
        ...

    def repeat(self, stored: str) -> None:
        """Take what another request has answered meanwhile under the same claim: to be answered instead."""
        ...

    def refuse(self, error: Exception) -> None:
        """Take the reason why there is none."""
        ...


class TokenIssuer:
    """Turns valid requests into tokens.

    `view` returns the current key ring, and is asked anew for every signature; `iat_backdate` is in
    seconds, for verifiers whose clock is behind ours.
    """

    def __init__(
        self,
        *,
        view: Callable[[], View],
        endpoints: StageLookup,
        gateway: TokenSource,
        ledger: Recorder,
        admit: Admit,
        admits_all: AdmitsAll,
        clock: Callable[[], float],
        iat_backdate: int,
        new_id: Callable[[], str] = new_participant_id,
    ) -> None:
        self._view = view
        self._endpoints = endpoints
        self._gateway = gateway
        self._ledger = ledger
        self._admit = admit
        self._admits_all = admits_all
        self._clock = clock
        self._iat_backdate = iat_backdate
        self._new_id = new_id

    async def issue(self, request: TokenRequest, caller_id: str | None) -> IssuedToken:
        """Issue one token and record it for `caller_id`.

        Raises BannedError, NoSigningKeyError (only where the request says `local`),
        StageNotFoundError, the other IvsError classes for what AWS answers, and LedgerBusyError or
        StoreUnavailableError where the ledger does not take the row.
        """
        draft = await self.draft(request, caller_id)
        await self._ledger.record((draft.row,))
        self.admit(request, draft.token.participant_id)
        return draft.token

    def issue_for(
        self,
        taker: Taker,
        request: TokenRequest,
        caller_id: str | None,
        claim_of: Callable[[Draft], Claim] | None = None,
    ) -> bool:
        """Issue one token as `issue` does, and tell `taker` what that would return or raise.

        It has no task that waits, so it is only for what needs to wait for nothing but the ledger.
        Anything else is told by False: then nothing was done, and `issue` does it. Raises what `issue`
        raises before it waits; then `taker` is told nothing. With `claim_of`, the claim is recorded with it.
        """
        draft = self._draft_at_hand(request, caller_id)
        if draft is None:
            return False
        claim = None if claim_of is None else claim_of(draft)
        self._ledger.record_for(_Handing(self, request, draft.token, taker), draft.row, claim)
        return True

    async def draft(self, request: TokenRequest, caller_id: str | None) -> Draft:
        """Make the token of one request; raises as `issue` does, the ledger apart."""
        draft = self._draft_at_hand(request, caller_id)
        if draft is not None:
            return draft
        if self.signer_of(request) is not None:
            endpoints = await self.stage_endpoints(request.stage, caller_id)
            # The key may have gone while IVS was asked, so it is looked up again.
            key = self.signer_of(request)
            if key is not None:
                return self.sign(request, endpoints, caller_id, None, key)
        return await self.ask_ivs(request, caller_id)

    def _draft_at_hand(self, request: TokenRequest, caller_id: str | None) -> Draft | None:
        """Make the token where neither IVS nor the store has to be asked for anything; else None."""
        self.admit(request)
        key = self.signer_of(request)
        if key is None:
            return None
        endpoints = self._endpoints.peek(request.stage, self._clock())
        if endpoints is None:
            return None
        return self.sign(request, endpoints, caller_id, None, key)

    def admit(self, request: TokenRequest, participant_id: str | None = None) -> None:
        """Refuse a request that must not be answered; raises BannedError."""
        self._admit(request.stage.text, request.user_id, participant_id)

    def admits_all(
        self, requests: Sequence[TokenRequest], participant_ids: Sequence[str] = ()
    ) -> bool:
        """Tell that `admit` lets all of these pass, which are for one stage.

        Where it is false, `admit` says of each. Raises StoreUnavailableError as `admit` does.
        """
        user_ids = [request.user_id for request in requests]
        return self._admits_all(requests[0].stage.text, user_ids, participant_ids)

    def signs(self, request: TokenRequest) -> bool:
        """Tell whether a local key signs this request; raises as `signer_of` does."""
        return self.signer_of(request) is not None

    def signer_of(self, request: TokenRequest) -> SigningKey | None:
        """Return the local key that signs this request now; None sends it to IVS.

        Raises NoSigningKeyError where no key may sign and the request does not allow IVS, and
        InvalidRequestError for a token that would outlive the key.
        """
        if request.issuer == "ivs":
            return None
        view = self._view()
        region = request.stage.region
        try:
            key = view.signing_key(region)
        except NoSigningKeyError:
            if request.issuer == "local":
                raise
            return None
        longest = view.longest_ttl(region)
        if request.duration * 60 > longest:
            raise _outlives_key(longest, "TOKENSVC_MAX_DURATION")
        return key

    async def stage_endpoints(self, stage: StageArn, caller_id: str | None) -> StageEndpoints:
        """Return a stage's endpoints; raises StageNotFoundError or another IvsError."""
        return await self._endpoints.get(stage, caller_id or "")

    def sign(
        self,
        request: TokenRequest,
        endpoints: StageEndpoints,
        caller_id: str | None,
        identity: Identity | None = None,
        key: SigningKey | None = None,
    ) -> Draft:
        """Sign a token now, for a new participant or for `identity`.

        `key` is what `signer_of` has just returned, where it was asked. Else raises NoSigningKeyError, and
        InvalidRequestError for a token that would outlive the key.

        A new `exp` is exactly `duration` from now. `iat` is set back for slow clocks, though never so
        far that the two are more than 14 days apart, which IVS refuses.
        """
        identity = identity or self.times(request)
        if key is None:
            view, region = self._view(), request.stage.region
            key = view.signing_key(region)
            left = identity.exp - int(self._clock())
            require_key_outlives(left, view.longest_ttl(region), "TOKENSVC_MAX_DURATION")
        return signed_here(request, endpoints, identity, key, caller_id)

    def signs_like(
        self,
        like: TokenRequest,
        endpoints: StageEndpoints,
        caller_id: str | None,
        before: Signing | None = None,
    ) -> Signing | None:
        """Return what signs requests that differ from `like` in user and attributes alone.

        What they have in common is made once. None sends them to IVS. It is good until anything is
        awaited: then the key may be gone, and the time is another. What was returned `before` to the same
        caller is returned again where it still holds. Raises as `signer_of` does.
        """
        key = self.signer_of(like)
        if key is None:
            return None
        iat, exp = self._times(like)
        if before is not None and before.is_for(like, endpoints, key, iat, exp):
            return before
        sign = signs_here(like, endpoints, iat, exp, key, caller_id, self._new_id)
        return Signing(like, endpoints, key, iat, exp, sign)

    def times(self, request: TokenRequest, participant_id: str | None = None) -> Identity:
        """Return the identity of a token signed now, of a new participant unless one is given."""
        iat, exp = self._times(request)
        return Identity(participant_id or self._new_id(), iat, exp)

    def _times(self, request: TokenRequest) -> tuple[int, int]:
        now = int(self._clock())
        exp = now + request.duration * 60
        return max(now - self._iat_backdate, exp - MAX_PARTICIPANT_TTL_SECONDS), exp

    async def ask_ivs(self, request: TokenRequest, caller_id: str | None) -> Draft:
        """Let IVS make the token (CreateParticipantToken); raises IvsError."""
        made = await self._gateway.create_participant_token(request)
        return made_by_ivs(request, made, int(self._clock()), caller_id)

    async def record(self, drafts: Sequence[Draft], claim: Claim | None = None) -> str | None:
        """Record drafts before they are handed out; see `LedgerWriter.record`."""
        return await self._ledger.record([draft.row for draft in drafts], claim)


class Signing(msgspec.Struct, frozen=True, eq=False):
    """What signs requests like one of them, and all that the tokens have in common.

    Not to be kept longer than a request takes: it holds a key.
    """

    like: TokenRequest
    endpoints: StageEndpoints
    key: SigningKey
    iat: int
    exp: int
    sign: Callable[[TokenRequest], Draft]

    def is_for(
        self, like: TokenRequest, endpoints: StageEndpoints, key: SigningKey, iat: int, exp: int
    ) -> bool:
        """Tell whether it signs requests like this one as well, with that key at that time."""
        own = self.like
        return (
            key is self.key
            and iat == self.iat
            and exp == self.exp
            and endpoints is self.endpoints
            and like.stage is own.stage
            and like.duration == own.duration
            and like.capabilities == own.capabilities
        )


class _Handing(msgspec.Struct, eq=False):
    """Hands one token out once its row is recorded, unless somebody was banned meanwhile."""

    issuer: TokenIssuer
    request: TokenRequest
    token: IssuedToken
    taker: Taker

    def done(self) -> bool:
        return False

    def set_result(self, late: str | None) -> None:
        if late is not None:
            self.taker.repeat(late)
            return
        try:
            self.issuer.admit(self.request, self.token.participant_id)
        except Exception as refusal:  # noqa: BLE001 - handed on
            self.taker.refuse(refusal)
        else:
            self.taker.hand_out(self.token)

    def set_exception(self, error: Exception) -> None:
        self.taker.refuse(error)


def require_key_outlives(left: float, longest: float, setting: str) -> None:
    """Refuse to sign a token with `left` seconds to live where its key is kept for `longest`.

    What another replica has signed before is borne with, whose clock may be ahead.
    """
    if left > longest + OTHERS_AHEAD_SECONDS:
        raise _outlives_key(longest, setting)


def _outlives_key(longest: float, setting: str) -> InvalidRequestError:
    minutes = int(longest // 60)
    detail = (
        f"is longer than the {minutes} minutes for which the Region's current key is kept;"
        f" {setting} was raised after that key began to sign, and counts from the next rotation on"
    )
    return InvalidRequestError(
        f"duration: {detail}", errors=(FieldError("duration", "outlives_key", detail, minutes),)
    )
