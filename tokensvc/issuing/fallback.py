"""CreateParticipantToken as the fallback: bounded in rate, in time, and in trust.

What a request may meet on its way, in this order:

- a circuit breaker for each Region: where IVS has not answered lately, nobody else waits for it
- the budget of calls a second and the threads of the gateway, each with a bounded line before it
- botocore's timeouts and attempts, and the gateway's deadline over all of them

So a request that falls back is answered within a bounded time: by a token, by IVS's refusal, or by 503
with `Retry-After`. Nothing is queued beyond that.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

import structlog

from tokensvc.errors import (
    FallbackSaturatedError,
    IvsError,
    IvsThrottledError,
    IvsUnavailableError,
)
from tokensvc.issuing.breaker import BreakerLimits, BreakerState, CircuitBreaker, Permit
from tokensvc.ivs.gateway import IvsToken
from tokensvc.tokens.claims import TokenRequest

__all__ = ["Fallback", "TokenMaker"]

_log = structlog.get_logger(__name__)


class TokenMaker(Protocol):
    """The gateway, as far as the fallback needs it."""

    async def create_participant_token(self, request: TokenRequest) -> IvsToken:
        """See `IvsGateway`."""
        ...


class Fallback:
    """Lets IVS make tokens while IVS answers; a `TokenSource`; belongs to one event loop."""

    def __init__(
        self,
        gateway: TokenMaker,
        clock: Callable[[], float],
        *,
        limits: BreakerLimits | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Guard `gateway`; `clock` gives seconds that never go back, `jitter` numbers from 0 up to 1."""
        self._gateway = gateway
        self._clock = clock
        self._limits = limits or BreakerLimits()
        self._jitter = jitter
        self._breakers: dict[str, CircuitBreaker] = {}

    async def create_participant_token(self, request: TokenRequest) -> IvsToken:
        """Let IVS make a token (CreateParticipantToken).

        Raises FallbackSaturatedError where our share of the calls a second, or IVS's patience, is spent;
        IvsUnavailableError, at once, while the Region's breaker is open; both with `retry_after`. Other
        IvsError classes are IVS's own answer to this request.
        """
        region = request.stage.region
        breaker = self._breaker(region)
        permit = breaker.admit(self._clock())
        if permit is None:
            raise IvsUnavailableError(
                "Amazon IVS has not answered lately, and is not asked again yet.",
                retry_after=breaker.retry_after(self._clock()),
                operation="CreateParticipantToken",
                region=region,
            )
        try:
            made = await self._gateway.create_participant_token(request)
        except IvsError as error:
            self._learn(region, breaker, permit, error)
            if isinstance(error, IvsThrottledError):
                raise _saturated(error) from error
            raise
        except BaseException:
            breaker.dropped(permit)
            raise
        self._answered(region, breaker, permit)
        return made

    def states(self) -> dict[str, BreakerState]:
        """Return the state of the breaker of every Region that the fallback was used for."""
        now = self._clock()
        return {region: breaker.state(now) for region, breaker in self._breakers.items()}

    def _breaker(self, region: str) -> CircuitBreaker:
        # Requests are validated against the Regions that are served, so these are few.
        breaker = self._breakers.get(region)
        if breaker is None:
            breaker = self._breakers[region] = CircuitBreaker(self._limits, self._jitter)
        return breaker

    def _learn(self, region: str, breaker: CircuitBreaker, permit: Permit, error: IvsError) -> None:
        if isinstance(error, IvsUnavailableError):
            before = breaker.state(self._clock())
            breaker.failed(permit, self._clock())
            if (
                before is not BreakerState.OPEN
                and breaker.state(self._clock()) is BreakerState.OPEN
            ):
                _log.warning(
                    "fallback_circuit_opened",
                    region=region,
                    pause_seconds=breaker.retry_after(self._clock()),
                    fault=error.context,
                )
        elif "http_status" in error.context:
            # A refusal is an answer: whoever it is about, IVS is there.
            self._answered(region, breaker, permit)
        else:
            # Our own budget or threads were spent, or the request never left: nothing was learnt.
            breaker.dropped(permit)

    def _answered(self, region: str, breaker: CircuitBreaker, permit: Permit) -> None:
        before = breaker.state(self._clock())
        breaker.succeeded(permit)
        if before is BreakerState.HALF_OPEN and breaker.state(self._clock()) is BreakerState.CLOSED:
            _log.info("fallback_circuit_closed", region=region)


def _saturated(error: IvsThrottledError) -> FallbackSaturatedError:
    saturated = FallbackSaturatedError(
        "The calls that Amazon IVS allows for tokens of its own making are spent.",
        retry_after=error.retry_after,
    )
    saturated.context |= error.context
    return saturated
