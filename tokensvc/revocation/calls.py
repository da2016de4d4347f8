"""The calls to IVS that disconnects come to, and the order they are made in; values without I/O.

One participant or user who was asked for is called before a stage that is being emptied, and of both
those who are connected first. The ranks are stored: a version that knows none below 0 takes those first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = [
    "CONNECTED",
    "FIRST",
    "ISSUED",
    "OF_KEY",
    "OF_USER",
    "WAITING",
    "DueCall",
    "NewCall",
    "Operation",
    "QueueState",
]

Operation: TypeAlias = Literal["disconnect", "revoke"]

FIRST: Final = -2
"""Asked for by its id; or connected, and asked for by its user's."""
OF_USER: Final = -1
"""Another token of a user who was asked for."""
CONNECTED: Final = 0
"""Connected to a stage that is asked for as a whole."""
OF_KEY: Final = 1
"""Of a key: nobody lists who is connected, so each of its calls is made."""
ISSUED: Final = 2
"""One of many: a token of a stage, with which nobody is connected, as far as is known."""
WAITING: Final = 3
"""IVS knew no such participant; its token lives and a ban stands, so it is tried again."""


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call to be made for a request, unless it is pending already.

    `exp` is when the token expires, Unix seconds, at the latest, and not before the request where at least
    one call is to be made. `connected`: IVS lists the participant.
    """

    operation: Operation
    stage_arn: str
    target_id: str
    user_id: str | None
    rank: int
    exp: float
    connected: bool = False

    @property
    def identity(self) -> tuple[str, str, str]:
        """What two pending calls must not have in common."""
        return (self.operation, self.stage_arn, self.target_id)


@dataclass(frozen=True, slots=True)
class QueueState:
    """A Region's queue: calls to be made, and those that wait for a participant to appear.

    `oldest_at` is when the oldest request with something still to be made came, Unix seconds; requests
    that only wait do not count.
    """

    due: int
    waiting: int
    oldest_at: float | None


@dataclass(frozen=True, slots=True)
class DueCall:
    """A call whose time has come; `attempts` were made before."""

    call_id: int
    region: str
    operation: Operation
    stage_arn: str
    target_id: str
    user_id: str | None
    reason: str
    rank: int
    attempts: int
    exp: float
    updated_at: float
    """It moves with every request that comes to share the call."""
