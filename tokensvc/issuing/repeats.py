"""Answering a repeated request (`Idempotency-Key`) as it was answered before, without having kept a token.

What is stored of an answer is who each token is for and its times; a repetition signs anew over the same
facts. It passes the same admission as a first request, and is refused where the token could not be
handed out again: IVS made it, it has expired, or its participant has been disconnected since.

Of a batch, the items that failed are stored as the problems they were answered with, so that the
repetition of a batch issues nothing that its first answer did not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

import msgspec

from tokensvc.errors import BannedError, FieldError, TokenServiceError
from tokensvc.issuing.issued import Identity
from tokensvc.issuing.slices import LoopSlices
from tokensvc.ledger.row import LedgerRow

__all__ = ["HasRow", "Kept", "KeptProblem", "KeptToken", "keep", "keep_batch", "kept", "kept_batch"]


class KeptToken(msgspec.Struct, frozen=True, tag="t", array_like=True):
    """What is kept of a token; `key_id` is None where IVS made it."""

    participant_id: str
    iat: int
    exp: int
    key_id: str | None

    @property
    def identity(self) -> Identity:
        """Whose token it is, and its times."""
        return Identity(self.participant_id, self.iat, self.exp)


class KeptProblem(msgspec.Struct, frozen=True, tag="p", array_like=True):
    """What is kept of an item that failed: the public half of its error."""

    code: str
    detail: str
    errors: list[FieldError] = []
    ban_id: str | None = None
    until: float | None = None
    """Of `banned` alone: the ban, and its end in Unix seconds (None: for good)."""

    def as_error(self) -> TokenServiceError:
        """Return the error as it was."""
        if self.code == BannedError.code:
            return BannedError(self.detail, ban_id=self.ban_id, until=self.until)
        return _CLASSES.get(self.code, TokenServiceError)(self.detail, errors=tuple(self.errors))


Kept: TypeAlias = KeptToken | KeptProblem

_decode: Final[Callable[[msgspec.Raw], Kept]] = msgspec.json.Decoder(Kept).decode


class HasRow(Protocol):
    """A draft of either kind of token."""

    @property
    def row(self) -> LedgerRow:
        """What the ledger remembers of it."""
        ...


def keep(outcomes: Sequence[HasRow | TokenServiceError]) -> str:
    """Return what to store of an answer."""
    return msgspec.json.encode([_keep(outcome) for outcome in outcomes]).decode()


async def keep_batch(outcomes: Sequence[HasRow | TokenServiceError], slices: LoopSlices) -> str:
    """Return what `keep` does, for a batch: its problems may come to megabytes."""
    parts: list[msgspec.Raw] = []
    for outcome in outcomes:
        if slices.spent():
            await slices.breathe()
        parts.append(msgspec.Raw(msgspec.json.encode(_keep(outcome))))
    # Only copies, but of megabytes.
    await slices.breathe()
    whole = msgspec.json.encode(parts).decode()
    if slices.spent():
        await slices.breathe()
    return whole


def kept(stored: str) -> list[Kept]:
    """Return what `keep` stored; raises TokenServiceError where it makes no sense."""
    return [_kept(part) for part in _parts(stored)]


async def kept_batch(stored: str, slices: LoopSlices) -> list[Kept]:
    """Return what `keep_batch` stored; raises TokenServiceError where it makes no sense."""
    found: list[Kept] = []
    for part in _parts(stored):
        if slices.spent():
            await slices.breathe()
        found.append(_kept(part))
    return found


def _parts(stored: str) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(stored, type=list[msgspec.Raw])
    except msgspec.DecodeError as fault:
        raise _damaged() from fault


def _kept(part: msgspec.Raw) -> Kept:
    try:
        return _decode(part)
    except msgspec.DecodeError as fault:
        raise _damaged() from fault


def _damaged() -> TokenServiceError:
    return TokenServiceError("The stored answer is damaged.")


def _keep(outcome: HasRow | TokenServiceError) -> Kept:
    if isinstance(outcome, TokenServiceError):
        kept_problem = KeptProblem(outcome.code, outcome.detail, list(outcome.errors))
        if isinstance(outcome, BannedError):
            return msgspec.structs.replace(kept_problem, ban_id=outcome.ban_id, until=outcome.until)
        return kept_problem
    row = outcome.row
    return KeptToken(row.token_id, row.iat, row.exp, row.key_id)


def _all_errors(root: type[TokenServiceError]) -> list[type[TokenServiceError]]:
    return [root, *(found for child in root.__subclasses__() for found in _all_errors(child))]


_CLASSES: Final = {error.code: error for error in reversed(_all_errors(TokenServiceError))}
