"""One row of the ledger, as the mint hands it over."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from tokensvc.tokens.claims import StageEndpoints

__all__ = ["CONNECTION", "PARTICIPANT", "LedgerRow", "TokenKind", "endpoints_id"]

TokenKind: TypeAlias = Literal["participant", "connection"]
PARTICIPANT: Final = "participant"
CONNECTION: Final = "connection"


class LedgerRow(NamedTuple):
    """What is remembered of one token; the order of fields is that of the insert.

    `token_id` is the `jti`, which for a participant token is the participant id. `stage_arn` is None
    for a connection token. `key_id` (ours), `key_arn` and `endpoints` are None for a token that IVS
    issued, and `endpoints` for a connection token. `iat` and `exp` are Unix seconds, as signed.
    """

    token_id: str
    kind: TokenKind
    stage_arn: str | None
    region: str
    user_id: str | None
    key_id: str | None
    key_arn: str | None
    caller_id: str | None
    issuer: Literal["local", "ivs"]
    iat: int
    exp: int
    endpoints: StageEndpoints | None


@lru_cache(maxsize=4096)
def endpoints_id(endpoints: StageEndpoints) -> str:
    """Return the id of a pair of endpoints: 128 bits of their hash, so that no process asks for one."""
    text = f"{endpoints.events}\n{endpoints.whip}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]
