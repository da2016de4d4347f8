"""Rows for the ledger's tests."""

from __future__ import annotations

from itertools import count

from tokensvc.ledger import LedgerRow
from tokensvc.tokens.claims import StageEndpoints

NOW = 1_800_000_000
STAGE = "arn:aws:ivs:eu-central-1:123456789012:stage/AbCdEf012345"
OTHER_STAGE = "arn:aws:ivs:eu-central-1:123456789012:stage/zzzzzzzzzzzz"
KEY_ARN = "arn:aws:ivs:eu-central-1:123456789012:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca1a"
ENDPOINTS = StageEndpoints("wss://global.events.live-video.net", "https://a.whip.live-video.net")

_numbers = count()


def row(token_id: str | None = None, **changes: object) -> LedgerRow:
    """A participant token of alice's, signed with k1, that lives for an hour from NOW."""
    made = LedgerRow(
        token_id=token_id or f"p{next(_numbers):06d}",
        kind="participant",
        stage_arn=STAGE,
        region="eu-central-1",
        user_id="alice",
        key_id="k1",
        key_arn=KEY_ARN,
        caller_id="backend",
        issuer="local",
        iat=NOW,
        exp=NOW + 3600,
        endpoints=ENDPOINTS,
    )
    return made._replace(**changes)  # type: ignore[arg-type]
