"""Our own call budgets, below the rates at which IVS throttles.

IVS allows each operation so many calls a second per account and Region, and will not raise that for
anyone (IVS Real-Time User Guide, "Service Quotas"). A call that would go over waits here for its
turn, briefly and in a line of bounded length; then it is refused, so that a burst becomes quick 503
answers and not a queue.

The budgets are those of one process. `UNDIVIDED` operations are made by the one process that holds the
Region's lease, for all of them. `DIVIDED` ones are made by all at once while keys are missing; how many
processes there are is told by `divide`. `TENDED` ones are made by those that look after keys, one on each
machine. Of the others, few calls are made. What is not ours at all in the account is left out by
`share`. A retry that botocore makes by itself is not counted.

What is promised is a number of calls in any second, wherever it begins, since how much IVS lets
through in a burst is not documented. A leaky bucket that holds a second's calls would let twice as
many through in its first second.

Urgent calls go to the head of their line, so that a flood of others costs them no turn. Of the turns a
share is left for the others, whatever is urgent.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from tokensvc.errors import ConfigurationError, IvsThrottledError

__all__ = [
    "CALLS_PER_SECOND",
    "DEFAULT_MAX_WAIT_SECONDS",
    "DIVIDED",
    "TENDED",
    "UNDIVIDED",
    "CallBudgets",
    "Operation",
]

Operation: TypeAlias = Literal[
    "CreateParticipantToken",
    "CreateStage",
    "DeletePublicKey",
    "DisconnectParticipant",
    "GetPublicKey",
    "GetStage",
    "ImportPublicKey",
    "ListParticipants",
    "ListPublicKeys",
    "ListStages",
    "RevokeConnectionToken",
]

CALLS_PER_SECOND: Final[Mapping[Operation, int]] = {
    "CreateParticipantToken": 50,
    "CreateStage": 5,
    "DeletePublicKey": 3,
    "DisconnectParticipant": 5,
    "GetPublicKey": 3,
    "GetStage": 5,
    "ImportPublicKey": 3,
    "ListParticipants": 5,
    "ListPublicKeys": 3,
    "ListStages": 5,
    "RevokeConnectionToken": 5,
}
"""IVS's quotas per account and Region, none of them adjustable ("Service Quotas", API call rates).

None is published for RevokeConnectionToken: 5 is what the like DisconnectParticipant has.
"""

UNDIVIDED: Final[frozenset[Operation]] = frozenset(
    {"DisconnectParticipant", "RevokeConnectionToken"}
)
"""Operations that one process at a time makes for all replicas (`revocation/worker.py`)."""

DIVIDED: Final[frozenset[Operation]] = frozenset({"CreateParticipantToken"})
"""Operations that every process makes as many of as it may (`issuing/fallback.py`)."""

TENDED: Final[frozenset[Operation]] = frozenset(
    {"DeletePublicKey", "GetPublicKey", "ImportPublicKey", "ListPublicKeys"}
)
"""Operations of those that look after keys (`keyring/loop.py`), who divide them as far as they go."""

_LEAST_TENDED: Final = 1.0
"""Calls a second of each such operation that nobody goes below: a rotation is several of them."""

DEFAULT_MAX_WAIT_SECONDS: Final = 2.0

WINDOW_SECONDS: Final = 1.05
"""What a second's calls are counted over here: calls that leave apart may arrive closer together."""

_URGENT_IN_A_ROW: Final = 4
"""Urgent calls that pass while another one waits; then that one does."""


class CallBudgets:
    """A sliding window for each operation in each Region; belongs to one event loop.

    A second's calls may come at once; the next one passes `WINDOW_SECONDS` after the first of them.
    """

    def __init__(
        self, *, share: float = 1.0, max_wait_seconds: float = DEFAULT_MAX_WAIT_SECONDS
    ) -> None:
        """Take `share` (above 0, at most 1) of IVS's rates; wait for a turn `max_wait_seconds` at most.

        A share is rounded down to whole calls a second, or to one call in more than a second.
        Raises ConfigurationError for a share or a wait out of bounds.
        """
        if not 0 < share <= 1:
            raise ConfigurationError(
                f"The share of IVS's call rates is {share}; it must be above 0 and at most 1."
            )
        if not 0 <= max_wait_seconds <= 60:
            raise ConfigurationError(
                f"The wait for a call to IVS is {max_wait_seconds} s; it must be 0 to 60 s."
            )
        self._share = share
        self._max_wait = max_wait_seconds
        self._parts = 1.0
        self._tenders = 1
        self._lines: dict[tuple[Operation, str], _Line] = {}

    def divide(self, parts: float, *, tenders: int = 1) -> None:
        """Take from now on one of so many equal parts (1 or more) of what is divided among processes.

        `tenders` of them (1 or more) look after keys, and divide what only they ask for.
        """
        self._parts = max(1.0, parts)
        self._tenders = max(1, tenders)
        for (operation, _), line in self._lines.items():
            line.set_quota(self._quota(operation))

    def _quota(self, operation: Operation) -> float:
        share = 1.0 if operation in UNDIVIDED else self._share
        quota = CALLS_PER_SECOND[operation] * share
        if operation in DIVIDED:
            return quota / self._parts
        if operation in TENDED:
            return max(quota / self._tenders, min(quota, _LEAST_TENDED))
        return quota

    async def take(self, operation: Operation, region: str, *, urgent: bool = False) -> None:
        """Return when the call may be made; `urgent` ones go first.

        Raises IvsThrottledError, with `retry_after`, when the turn does not come within the longest
        wait; at once, when those already waiting fill it.
        """
        line = self._lines.get((operation, region))
        if line is None:
            line = _Line(self._quota(operation), self._max_wait)
            self._lines[operation, region] = line
        if not await line.pass_through(urgent=urgent):
            raise IvsThrottledError(
                "The budget of calls to Amazon IVS is spent.",
                retry_after=line.clears_in(),
                operation=operation,
                region=region,
                calls_per_second=line.rate,
                waiting=line.waiting,
            )


class _Line:
    def __init__(self, quota: float, max_wait: float) -> None:
        self._max_wait = max_wait
        self._passed: deque[float] = deque()
        self.set_quota(quota)
        # Whether it is urgent, for each kind of call: how many wait, and which is the first of them.
        self._waiting = {True: 0, False: 0}
        self._heads = {True: asyncio.Lock(), False: asyncio.Lock()}
        self._overtaken = 0

    @property
    def waiting(self) -> int:
        return sum(self._waiting.values())

    def set_quota(self, quota: float) -> None:
        calls = max(1, math.floor(quota))
        self._window = WINDOW_SECONDS * max(1.0, 1 / quota)
        self.rate = calls / self._window
        self._passed = deque(self._passed, maxlen=calls)

    async def pass_through(self, *, urgent: bool) -> bool:
        if self.waiting == 0 and self._seconds_left() <= 0:
            self._pass(urgent)
            return True
        ahead = self._waiting[True] if urgent else self.waiting
        if self._seconds_left(ahead) > self._max_wait:
            return False
        self._waiting[urgent] += 1
        try:
            async with asyncio.timeout(self._max_wait), self._heads[urgent]:
                # Again where calls of the other kind have come or gone meanwhile.
                while (left := self._seconds_left(self._before_the_first(urgent))) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(left)
                self._pass(urgent)
        except TimeoutError:
            return False
        finally:
            self._waiting[urgent] -= 1
        return True

    def clears_in(self) -> float:
        return max(1.0, (self.waiting + 1) / self.rate)

    def _before_the_first(self, urgent: bool) -> int:
        """Return how many calls of the other kind go before the first of this one."""
        others = self._waiting[not urgent]
        left = _URGENT_IN_A_ROW - self._overtaken
        if urgent:
            return 0 if left > 0 else min(others, 1)
        return min(others, left)

    def _seconds_left(self, ahead: int = 0) -> float:
        """Return how long a call with so many ahead of it has to wait; 0 or less: not at all."""
        calls = self._passed.maxlen or 1
        if len(self._passed) < calls:
            return 0.0
        rounds, place = divmod(ahead, calls)
        turn = self._passed[place] + self._window * (rounds + 1)
        return turn - asyncio.get_running_loop().time()

    def _pass(self, urgent: bool) -> None:
        overtakes = urgent and self._waiting[False] > 0
        self._overtaken = self._overtaken + 1 if overtakes else 0
        self._passed.append(asyncio.get_running_loop().time())
