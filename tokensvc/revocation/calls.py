"""The calls to IVS that disconnects come to, and the order they are made in; values without I/O.

Whoever is connected is called first, who was asked for by name next, then the rest of a stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = [
    "CONNECTED",
    "ISSUED",
    "NAMED",
    "WAITING",
    "DueCall",
    "NewCall",
    "Operation",
    "QueueState",
]

Operation: TypeAlias = Literal["disconnect", "revoke"]

CONNECTED: Final = 0
"""IVS lists the participant as connected."""
NAMED: Final = 1
"""Asked for by its id or its user's."""
ISSUED: Final = 2
"""One of many: a token of a stage, with which nobody is connected, as far as is known."""
WAITING: Final = 3
"""IVS knew no such participant; its token lives and a ban stands, so it is tried again."""


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call to be made for a request, unless it is pending already.

    `exp` is when the token expires, Unix seconds, at the latest.
    """

    operation: Operation
    stage_arn: str
    target_id: str
    user_id: str | None
    rank: int
    exp: float

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
