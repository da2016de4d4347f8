"""Gives tokens again: signed anew over the facts that `repeats.py` kept of them.

A token is given again where its participant may have another one (`living.py`). Where the ledger does not
know that the key of now signs it, it is told before the token leaves.

The tokens of a batch are looked up together, and the rows that the ledger lacks go to it together: one by
one, a thousand of them took seconds. Each item is refused by itself, with what a single one would be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from tokensvc.errors import NotRepeatableError, StoreUnavailableError, TokenServiceError
from tokensvc.issuing.batch import BatchItem, BatchOutcome, hand_out_batch
from tokensvc.issuing.issued import Draft, IssuedToken
from tokensvc.issuing.issuer import OTHERS_AHEAD_SECONDS, TokenIssuer
from tokensvc.issuing.living import (
    IssuedTokens,
    PendingDisconnects,
    why_going,
    why_gone,
    why_not_again,
)
from tokensvc.issuing.repeats import Kept, KeptProblem, KeptToken
from tokensvc.issuing.slices import LoopSlices
from tokensvc.ledger.lookups import IssuedRecord
from tokensvc.ledger.row import LedgerRow
from tokensvc.tokens.claims import TokenRequest

__all__ = ["Repetition", "knows"]

_FORGOTTEN: Final = "The token has expired, and the ledger has forgotten it."


class _Asked(NamedTuple):
    request: TokenRequest
    one: KeptToken


class _Found(NamedTuple):
    request: TokenRequest
    one: KeptToken
    record: IssuedRecord


_Done: TypeAlias = dict[int, Draft | TokenServiceError]
"""What items have come to, by their place in the batch."""


class Repetition:
    """Gives tokens again; `clock` gives Unix seconds."""

    def __init__(
        self,
        *,
        issuer: TokenIssuer,
        ledger: IssuedTokens,
        pending: PendingDisconnects,
        clock: Callable[[], float],
    ) -> None:
        self._issuer = issuer
        self._ledger = ledger
        self._pending = pending
        self._clock = clock

    async def token(
        self, request: TokenRequest, one: KeptToken, caller_id: str | None
    ) -> IssuedToken:
        """Give one participant token again; raises NotRepeatableError, and what `TokenDesk` does."""
        self._admit(request, one)
        found = await self.find(one)
        draft = await self._sign(_Found(request, one, found), caller_id)
        if not knows(found, draft.row):
            await self._issuer.record([draft])
        self._issuer.admit(request, one.participant_id)
        return draft.token

    async def find(self, one: KeptToken) -> IssuedRecord:
        """Return what the ledger has of a token, of either kind, that may be given again.

        Raises NotRepeatableError, and StoreUnavailableError.
        """
        found = await self._ledger.latest(one.participant_id)
        if found is None:
            raise NotRepeatableError(_FORGOTTEN)
        now = self._clock()
        reason = await why_not_again(found, self._pending, now) or _why_expired(one, now)
        if reason is not None:
            raise NotRepeatableError(reason)
        return found

    async def batch(
        self,
        items: Sequence[BatchItem],
        known: Sequence[Kept],
        slices: LoopSlices,
        caller_id: str | None,
    ) -> list[BatchOutcome]:
        """Answer every item as it was answered before, or with the error that it comes to now.

        A ledger that is too busy is an error of those items alone that it lacks. Raises
        StoreUnavailableError: then no item is answered.
        """
        done: _Done = {}
        asked = await self._admit_all(items, known, done, slices)
        found = await self._find_all(asked, done, slices)
        await self._sign_all(found, done, slices, caller_id)
        drafts = [done[index] for index in range(len(items))]
        return await hand_out_batch(self._issuer, items, drafts, slices)

    async def _admit_all(
        self, items: Sequence[BatchItem], known: Sequence[Kept], done: _Done, slices: LoopSlices
    ) -> dict[int, _Asked]:
        asked: dict[int, _Asked] = {}
        for index, (item, one) in enumerate(zip(items, known, strict=True)):
            if slices.spent():
                await slices.breathe()
            if isinstance(item, TokenServiceError):
                done[index] = item
            elif isinstance(one, KeptProblem):
                done[index] = one.as_error()
            else:
                try:
                    self._admit(item, one)
                except StoreUnavailableError:
                    raise
                except TokenServiceError as refusal:
                    done[index] = refusal
                else:
                    asked[index] = _Asked(item, one)
        return asked

    async def _find_all(
        self, asked: Mapping[int, _Asked], done: _Done, slices: LoopSlices
    ) -> dict[int, _Found]:
        ids = [of_item.one.participant_id for of_item in asked.values()]
        records = await self._ledger.latest_of(ids, slices)
        now = self._clock()
        living: dict[int, IssuedRecord] = {}
        for index, (_, one) in asked.items():
            if slices.spent():
                await slices.breathe()
            record = records.get(one.participant_id)
            if record is None:
                done[index] = NotRepeatableError(_FORGOTTEN)
            elif (reason := why_gone(record, now)) is not None:
                done[index] = NotRepeatableError(reason)
            else:
                living[index] = record
        named = [(record.stage_arn, record.token_id) for record in living.values()]
        going = await self._pending.pending_of(named)
        found: dict[int, _Found] = {}
        for (index, record), name in zip(living.items(), named, strict=True):
            if slices.spent():
                await slices.breathe()
            request, one = asked[index]
            why_not = why_going(record) if name in going else _why_expired(one, now)
            if why_not is not None:
                done[index] = NotRepeatableError(why_not)
            else:
                found[index] = _Found(request, one, record)
        return found

    async def _sign_all(
        self,
        found: Mapping[int, _Found],
        done: _Done,
        slices: LoopSlices,
        caller_id: str | None,
    ) -> None:
        """Sign every token, and have the ledger know all of them."""
        lacking: dict[int, Draft] = {}
        for index, of_item in found.items():
            if slices.spent():
                await slices.breathe()
            try:
                draft = await self._sign(of_item, caller_id)
            except StoreUnavailableError:
                raise
            except TokenServiceError as refusal:
                done[index] = refusal
            else:
                done[index] = draft
                if not knows(of_item.record, draft.row):
                    lacking[index] = draft
        if not lacking:
            return
        try:
            await self._issuer.record(list(lacking.values()))
        except StoreUnavailableError:
            raise
        except TokenServiceError as refusal:
            done.update(dict.fromkeys(lacking, refusal))

    def require_duration(self, one: KeptToken, minutes: int) -> None:
        """Raise NotRepeatableError where the policy gives a token so many minutes now, and gave it others."""
        seconds = minutes * 60
        left = one.exp - self._clock()
        if left > seconds + OTHERS_AHEAD_SECONDS or one.exp - one.iat < seconds:
            raise NotRepeatableError(
                "The policy gives this request another duration than it did when it was answered."
            )

    def _admit(self, request: TokenRequest, one: KeptToken) -> None:
        self._issuer.admit(request, one.participant_id)
        self.require_duration(one, request.duration)

    async def _sign(self, found: _Found, caller_id: str | None) -> Draft:
        request, one, record = found
        endpoints = record.endpoints or await self._issuer.stage_endpoints(request.stage, caller_id)
        return self._issuer.sign(request, endpoints, caller_id, one.identity)


def knows(found: IssuedRecord, signed: LedgerRow) -> bool:
    """Tell whether the ledger keeps the key of `signed` as long as that lives.

    The key may be another one than when the request was first answered, and the newest token of the
    participant may be one that it was exchanged for since.
    """
    return found.key_id == signed.key_id and found.exp >= signed.exp


def _why_expired(one: KeptToken, now: float) -> str | None:
    if one.exp > now:
        return None
    return "The token has expired; its participant has another one since."
