"""When to stop asking somebody who does not answer, and when to try again.

Closed: calls pass. After a number of failures in a row it opens: no call passes for a pause. Then it is
half-open: one call passes as a probe; its success closes the breaker, its failure opens it for a pause
twice as long, up to a bound. A call that was let through before the breaker last changed says nothing
about now, so what comes of it is not counted.

Pure: time is an argument, in seconds that never go back (`time.monotonic`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tokensvc.errors import ConfigurationError

__all__ = ["BreakerLimits", "BreakerState", "CircuitBreaker", "Permit"]

_SPREAD: Final = 0.2
"""By how much a pause is stretched at random, so that replicas do not probe at the same moment."""

_PROBE_RETRY_SECONDS: Final = 1.0


class BreakerState(StrEnum):
    """What a breaker does with the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a breaker opens and for how long."""

    failures: int = 5
    """Failures in a row, without a success between them, that open it."""

    pause_seconds: float = 5.0
    """How long it stays open the first time; twice as long after each probe that fails."""

    max_pause_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Raise ConfigurationError for limits that cannot work."""
        if self.failures < 1 or not 0 < self.pause_seconds <= self.max_pause_seconds:
            raise ConfigurationError(
                "A circuit breaker needs at least one failure and a pause above 0 s that is not"
                " above its longest pause."
            )


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave for one call; give it back exactly once, with what came of the call."""

    epoch: int


class CircuitBreaker:
    """One breaker; not for several threads at once."""

    def __init__(self, limits: BreakerLimits, jitter: Callable[[], float]) -> None:
        """Make a closed breaker; `jitter` gives numbers from 0 up to 1."""
        self._limits = limits
        self._jitter = jitter
        self._state = BreakerState.CLOSED
        self._epoch = 0
        self._failures = 0
        self._pauses = 0
        self._open_until = 0.0
        self._probing = False

    def state(self, now: float) -> BreakerState:
        """Return the state at `now`: open until its pause is over, half-open from then on."""
        if self._state is BreakerState.OPEN and now >= self._open_until:
            return BreakerState.HALF_OPEN
        return self._state

    def admit(self, now: float) -> Permit | None:
        """Return a permit for one call, or None where it must not be made; then see `retry_after`."""
        state = self.state(now)
        if state is BreakerState.OPEN:
            return None
        if state is BreakerState.HALF_OPEN:
            if self._probing:
                return None
            self._state = state
            self._probing = True
        return Permit(self._epoch)

    def retry_after(self, now: float) -> float:
        """Return the seconds after which the next call may pass; above 0."""
        return max(_PROBE_RETRY_SECONDS, self._open_until - now)

    def succeeded(self, permit: Permit) -> None:
        """The call was answered."""
        if permit.epoch != self._epoch:
            return
        self._failures = 0
        if self._probing:
            self._change(BreakerState.CLOSED)
            self._pauses = 0

    def failed(self, permit: Permit, now: float) -> None:
        """The call was not answered."""
        if permit.epoch != self._epoch:
            return
        self._failures += 1
        if self._probing or self._failures >= self._limits.failures:
            self._open(now)

    def dropped(self, permit: Permit) -> None:
        """The call was given up before it could show anything; another may be the probe."""
        if permit.epoch == self._epoch:
            self._probing = False

    def _open(self, now: float) -> None:
        self._change(BreakerState.OPEN)
        pause = self._limits.pause_seconds * 2.0 ** min(self._pauses, 32)
        self._pauses += 1
        pause = min(pause, self._limits.max_pause_seconds)
        self._open_until = now + pause * (1 + _SPREAD * self._jitter())

    def _change(self, state: BreakerState) -> None:
        self._state = state
        self._epoch += 1
        self._failures = 0
        self._probing = False
