"""Where callers' requests for tokens arrive: minted, exchanged, repeated; recorded, then handed out.

A request may carry a reference (`Idempotency-Key`). Then what its answer is made of is stored in the
commit of its ledger rows, and the same request again is answered by the same tokens, signed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec.structs import replace

from tokensvc.errors import (
    FieldError,
    InvalidRequestError,
    NotExchangeableError,
    NotFoundError,
    PolicyDeniedError,
    TokenServiceError,
)
from tokensvc.issuing.batch import (
    BatchItem,
    BatchOutcome,
    draft_batch,
    hand_out_batch,
    withdraw_banned,
)
from tokensvc.issuing.connection import ConnectionSigner, ConnectionToken
from tokensvc.issuing.issued import Draft, IssuedToken
from tokensvc.issuing.issuer import Recorder, Taker, TokenIssuer
from tokensvc.issuing.living import IssuedTokens, PendingDisconnects, why_not_again
from tokensvc.issuing.repeats import HasRow, Kept, KeptToken, keep, keep_batch, kept, kept_batch
from tokensvc.issuing.repetition import Repetition, knows
from tokensvc.issuing.slices import LoopSlices
from tokensvc.ledger.idempotency import Claim, IdempotencyRef
from tokensvc.ledger.row import PARTICIPANT
from tokensvc.ledger.waiting import Waiter
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import TokenRequest, WantedToken
from tokensvc.tokens.connection import ConnectionRequest
from tokensvc.tokens.exchange import ExchangeRequest

__all__ = ["Answers", "Policy", "TokenDesk"]


class Answers(Protocol):
    """What was answered to requests that carried a reference."""

    async def find(self, ref: IdempotencyRef, now: float) -> str | None:
        """Return the stored answer; raises IdempotencyConflictError and StoreUnavailableError."""
        ...

    def find_for(self, waiter: Waiter, ref: IdempotencyRef, now: float) -> None:
        """Tell `waiter` what `find` returns or raises."""
        ...


class Policy(Protocol):
    """What the caller who asks may have."""

    async def __call__(self, wanted: WantedToken, *, counted: bool) -> TokenRequest:
        """Return what to issue; raises PolicyDeniedError, RateLimitedError and IvsError classes.

        What is not `counted` against the caller's limits repeats an answer.
        """
        ...


class TokenDesk:
    """Answers requests for tokens, which have passed the policy.

    `clock` gives Unix seconds, `idempotency_window` is in seconds.

    Every method raises BannedError, NoSigningKeyError, the IvsError classes, LedgerBusyError and
    StoreUnavailableError, and with a `ref` IdempotencyConflictError and NotRepeatableError; in each
    case nothing was handed out.
    """

    def __init__(
        self,
        *,
        issuer: TokenIssuer,
        connections: ConnectionSigner,
        recorder: Recorder,
        ledger: IssuedTokens,
        pending: PendingDisconnects,
        answers: Answers,
        key_is_gone: Callable[[str], bool],
        clock: Callable[[], float],
        idempotency_window: float,
    ) -> None:
        """`key_is_gone` tells of a public key's ARN whether our ring has deleted it."""
        self._issuer = issuer
        self._repetition = Repetition(issuer=issuer, ledger=ledger, pending=pending, clock=clock)
        self._connections = connections
        self._recorder = recorder
        self._ledger = ledger
        self._pending = pending
        self._answers = answers
        self._key_is_gone = key_is_gone
        self._clock = clock
        self._window = idempotency_window

    async def has_answered(self, ref: IdempotencyRef) -> bool:
        """Tell whether a request under `ref` would repeat an answer, and issue nothing new.

        Where it would not, say so to `mint` and `mint_batch` (`is_new`): they then do not look again.
        """
        return await self._stored(ref) is not None

    def find_for(self, waiter: Waiter, ref: IdempotencyRef) -> None:
        """Tell `waiter` what was answered under `ref`; None where nothing was, as `has_answered` tells."""
        self._answers.find_for(waiter, ref, self._clock())

    def mint_for(
        self,
        taker: Taker,
        request: TokenRequest,
        caller_id: str | None,
        ref: IdempotencyRef | None = None,
    ) -> bool:
        """Issue one participant token, new under its `ref`; see `TokenIssuer.issue_for`."""
        claim_of = None if ref is None else lambda draft: self._claim(ref, [draft])
        return self._issuer.issue_for(taker, request, caller_id, claim_of)

    async def repeat(
        self, request: TokenRequest, stored: str, caller_id: str | None
    ) -> IssuedToken:
        """Answer as another request under the same `ref` was, which `Taker.repeat` was told."""
        return await self._repetition.token(request, _only(kept(stored)), caller_id)

    async def mint(
        self,
        request: TokenRequest,
        caller_id: str | None,
        ref: IdempotencyRef | None = None,
        *,
        is_new: bool = False,
    ) -> IssuedToken:
        """Issue one participant token."""
        if ref is None:
            return await self._issuer.issue(request, caller_id)
        known = None if is_new else await self._known(ref)
        if known is None:
            draft = await self._issuer.draft(request, caller_id)
            late = await self._issuer.record([draft], self._claim(ref, [draft]))
            if late is None:
                self._issuer.admit(request, draft.token.participant_id)
                return draft.token
            return await self.repeat(request, late, caller_id)
        return await self._repetition.token(request, _only(known), caller_id)

    async def mint_batch(
        self,
        items: Sequence[BatchItem],
        slices: LoopSlices,
        caller_id: str | None,
        ref: IdempotencyRef | None = None,
        *,
        is_new: bool = False,
    ) -> list[BatchOutcome]:
        """Answer every item with its token or its error; one that is an error already keeps it.

        Raises LedgerBusyError, and StoreUnavailableError: then no item is answered.
        """
        stored = None if ref is None or is_new else await self._stored(ref)
        if stored is None:
            drafts = await draft_batch(self._issuer, items, slices, caller_id)
            claim = None
            if ref is not None:
                claim = self._claim_of(ref, await keep_batch(drafts, slices))
            made = [draft for draft in drafts if isinstance(draft, Draft)]
            late = await self._issuer.record(made, claim) if made or claim else None
            if late is None:
                return await hand_out_batch(self._issuer, items, drafts, slices)
            stored = late
        known = await kept_batch(stored, slices)
        return await self._repetition.batch(items, known, slices, caller_id)

    def withdraw_banned(self, items: Sequence[BatchItem], outcomes: list[BatchOutcome]) -> bool:
        """Take back, just before they leave, the tokens of who was banned since; see `batch.py`."""
        return withdraw_banned(self._issuer, items, outcomes)

    async def exchange(
        self,
        request: ExchangeRequest,
        caller_id: str | None,
        policy: Policy,
        ref: IdempotencyRef | None = None,
    ) -> IssuedToken:
        """Issue a token that the holder of a living one can exchange it for, as `policy` has it.

        Same `jti`, stage and endpoints as were signed first, whatever GetStage answers now. Raises
        NotFoundError for a participant that is not in the ledger, NotExchangeableError,
        InvalidRequestError where `stageArn` is not the participant's, and what `policy` raises.
        """
        found = await self._ledger.latest(request.participant_id)
        if found is None or found.kind != PARTICIPANT or found.stage_arn is None:
            raise NotFoundError("There is no such participant in the ledger.")
        stage = StageArn.parse(found.stage_arn)
        if request.stage is not None and request.stage != stage:
            detail = "is not the stage that this participant's token is for"
            raise InvalidRequestError(
                f"stageArn: {detail}", errors=(FieldError("stageArn", "mismatch", detail),)
            )
        known = None if ref is None else await self._known(ref)
        asked = WantedToken(
            stage=stage,
            user_id=request.user_id if request.user_id is not None else found.user_id,
            role=request.role,
            duration=request.duration,
            capabilities=request.capabilities,
            attributes=request.attributes,
        )
        allowed = await policy(asked, counted=known is None)
        if allowed.issuer == "ivs":
            await _require_local(policy, asked)
        wanted = replace(allowed, issuer="local")
        # Under the name before, too: a banned user does not get in under another one.
        before = replace(wanted, user_id=found.user_id)
        for one in (before, wanted):
            self._issuer.admit(one, request.participant_id)
        if known is not None:
            return await self._repetition.token(wanted, _only(known), caller_id)
        reason = await why_not_again(found, self._pending, self._clock())
        if reason is None and found.key_arn is not None and self._key_is_gone(found.key_arn):
            reason = "The key that signed its token has been deleted, so the token is void."
        if reason is not None or found.endpoints is None:
            raise NotExchangeableError(reason or "The endpoints it was signed with are not known.")
        identity = self._issuer.times(wanted, request.participant_id)
        draft = self._issuer.sign(wanted, found.endpoints, caller_id, identity)
        late = await self._issuer.record([draft], self._claim(ref, [draft]) if ref else None)
        if late is not None:
            return await self._repetition.token(wanted, _only(kept(late)), caller_id)
        for one in (before, wanted):
            self._issuer.admit(one, request.participant_id)
        return draft.token

    async def connect(
        self, request: ConnectionRequest, caller_id: str | None, ref: IdempotencyRef | None = None
    ) -> ConnectionToken:
        """Issue one connection token; raises InvalidRequestError for a stage of another account."""
        self._connections.admit(request)
        known = None if ref is None else await self._known(ref)
        if known is None:
            draft = self._connections.sign(request, caller_id)
            claim = self._claim(ref, [draft]) if ref else None
            late = await self._recorder.record([draft.row], claim)
            if late is None:
                self._connections.admit(request, draft.token.token_id)
                return draft.token
            known = kept(late)
        one = _only(known)
        self._repetition.require_duration(one, request.duration)
        found = await self._repetition.find(one)
        draft = self._connections.sign(request, caller_id, one.identity)
        if not knows(found, draft.row):
            await self._recorder.record([draft.row])
        self._connections.admit(request, draft.token.token_id)
        return draft.token

    async def _stored(self, ref: IdempotencyRef) -> str | None:
        return await self._answers.find(ref, self._clock())

    async def _known(self, ref: IdempotencyRef) -> list[Kept] | None:
        stored = await self._stored(ref)
        return None if stored is None else kept(stored)

    def _claim(self, ref: IdempotencyRef, outcomes: Sequence[HasRow]) -> Claim:
        return self._claim_of(ref, keep(outcomes))

    def _claim_of(self, ref: IdempotencyRef, result: str) -> Claim:
        return Claim(ref, result, self._clock() + self._window)


async def _require_local(policy: Policy, asked: WantedToken) -> None:
    """Refuse what `policy` has IVS alone make; what it makes by default may be signed here, too."""
    try:
        await policy(replace(asked, issuer="local"), counted=False)
    except PolicyDeniedError as refusal:
        raise NotExchangeableError(
            "The policy lets this caller have tokens of IVS alone, which cannot be exchanged."
        ) from refusal


def _only(known: Sequence[Kept]) -> KeptToken:
    if len(known) != 1 or not isinstance(known[0], KeptToken):
        raise TokenServiceError("The stored answer is damaged.")
    return known[0]
