"""A desk over a test's world; what it stores of answers is in memory."""

from __future__ import annotations

from typing import Any

from tokensvc.issuing.connection import ConnectionSigner
from tokensvc.issuing.desk import TokenDesk
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.tokens.claims import TokenRequest, WantedToken
from tokensvc.tokens.connection import CONNECTION_EVENTS_URL
from tokensvc.tokens.validate import complete

WINDOW = 3600.0


def desk_over(world: Any, issuer: TokenIssuer) -> TokenDesk:
    return TokenDesk(
        issuer=issuer,
        connections=ConnectionSigner(
            view=lambda: world,
            admit=world.admit,
            clock=lambda: world.now,
            iat_backdate=5,
            events_url=CONNECTION_EVENTS_URL,
        ),
        recorder=world,
        ledger=world,
        pending=world,
        answers=world,
        key_is_gone=lambda arn: arn in world.gone_keys,
        clock=lambda: world.now,
        idempotency_window=WINDOW,
    )


async def freely(wanted: WantedToken, *, counted: bool) -> TokenRequest:
    """The policy that leaves everything to the caller."""
    return complete(wanted)
