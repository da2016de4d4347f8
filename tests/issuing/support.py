"""A desk over a test's world, which keeps in memory what is stored."""

from __future__ import annotations

from typing import Any

from tokensvc.issuing.connection import ConnectionSigner
from tokensvc.issuing.desk import TokenDesk
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.tokens.claims import TokenRequest, WantedToken
from tokensvc.tokens.connection import CONNECTION_EVENTS_URL
from tokensvc.tokens.validate import complete

WINDOW = 3600.0


def desk_over(world: Any, issuer: TokenIssuer, **stored: Any) -> TokenDesk:
    """Return a desk; `stored` are those of its parts that are a database's."""
    of_world = dict.fromkeys(("recorder", "ledger", "pending", "answers"), world)
    return TokenDesk(
        issuer=issuer,
        connections=ConnectionSigner(
            view=lambda: world,
            admit=world.admit,
            clock=lambda: world.now,
            iat_backdate=5,
            events_url=CONNECTION_EVENTS_URL,
        ),
        **{**of_world, **stored},
        key_is_gone=lambda arn: arn in world.gone_keys,
        clock=lambda: world.now,
        idempotency_window=WINDOW,
    )


async def freely(wanted: WantedToken, *, counted: bool) -> TokenRequest:
    """The policy that leaves everything to the caller."""
    return complete(wanted)
