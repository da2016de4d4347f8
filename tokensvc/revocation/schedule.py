"""When a call to IVS is made, made again, or given up; pure."""

from __future__ import annotations

import math
from typing import Final

__all__ = [
    "CALLS_PER_SECOND",
    "LONGEST_RETRY_SECONDS",
    "SESSION_SECONDS",
    "SPACING_SECONDS",
    "given_up_at",
    "retry_delay",
]

CALLS_PER_SECOND: Final = 5
"""DisconnectParticipant's quota per account and Region, not adjustable (IVS guide, "Service Quotas")."""

SPACING_SECONDS: Final = 0.205
"""Between the beginnings of two calls: no second, wherever it begins, sees a sixth."""

SESSION_SECONDS: Final = 86_400
"""IVS ends a participant's publishing and subscribing after 24 hours ("Service Quotas")."""

FIRST_RETRY_SECONDS: Final = 1.0
FIRST_RETRY_NOT_CONNECTED_SECONDS: Final = 5.0
LONGEST_RETRY_SECONDS: Final = 60.0


def retry_delay(attempts: int, luck: float, *, not_connected: bool = False) -> float:
    """Return the seconds before the next attempt after `attempts` of them.

    Doubles from 1 s (5 s where IVS knew no such participant) to 60 s; `luck`, 0 to 1, takes off up to
    half, so that what failed together is not repeated together.
    """
    first = FIRST_RETRY_NOT_CONNECTED_SECONDS if not_connected else FIRST_RETRY_SECONDS
    full = min(first * math.pow(2, min(attempts - 1, 16)), LONGEST_RETRY_SECONDS)
    return full * (1 - luck / 2)


def given_up_at(exp: float) -> float:
    """Return when a call that keeps failing is given up: when nobody can be connected any more.

    IVS looks at `exp` only at the join, so who joined just before it stays connected for up to a day.
    """
    return exp + SESSION_SECONDS
